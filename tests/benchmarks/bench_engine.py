"""The engine and the plain loop at full width, with every example computed for every ACT step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from hrm.inference.engine import Engine
from hrm.kernels import accelerate
from hrm.model.network import HRM, Levels, State
from schemas import HaltedBy
from tests.benchmarks.limit import GPU_SIZE, Product, arithmetic, fastest_product
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, loop_run, median_ratio
from tests.benchmarks.setting import (
    DTYPES,
    THREADS,
    Setting,
    dtype_name,
    engine_dtypes,
    random_examples,
    random_network,
)

TITLE = "Engine at fixed steps"


def run(setting: Setting) -> str:
    config, steps = setting.config, setting.config.halt_max_steps
    operations = arithmetic(config, steps)
    rows = [
        row
        for slots, count in ((setting.slots, setting.examples), (1, setting.single_examples))
        for row in _rows(slots, _rates(setting, slots, count))
    ]
    loops = ["plain loop", *(["compiled loop"] if setting.is_cuda else [])]
    header = ["dtype", "slots", *loops, "engine", *(f"engine / {loop}" for loop in loops)]
    header += [f"engine / {dtype_name(dtype)}'s" for dtype in DTYPES]
    return paragraphs(
        f"D {config.hidden_size}, {config.H_layers} + {config.L_layers} layers, random "
        f"weights, {steps} ACT steps per example; {setting.examples:,} examples per run, "
        f"{setting.single_examples} with one slot and one example at a time; rates in examples per "
        f"second, medians of {setting.rounds} paired runs.",
        table([*header, "limit", "engine / limit"], rows),
        "The limit is the rate of examples if nothing but their matrix products "
        f"({operations / 1e9:.1f} GFLOP each) took time, at the speed of {_product_name(setting)}, "
        f"measured alone for {setting.seconds} s in every round. In int8, attention's products and "
        "the token head's, which stay as they are, are counted as if they were of int8 too. "
        "Loops have no int8; float32's stand beside it.",
    )


def _product_name(setting: Setting) -> str:
    if setting.is_cuda:
        return f"a product of {GPU_SIZE} by {GPU_SIZE}"
    return "the fastest of the network's products, in torch's forms and the engine's"


@dataclass(frozen=True)
class Rates:
    """Rates in one dtype, by round."""

    loops: Sequence[Sequence[float]]
    """The plain loop's and, on a GPU, the compiled one's."""
    engine: Sequence[float]
    limit: Sequence[float]


def _rates(setting: Setting, slots: int, count: int) -> dict[torch.dtype, Rates]:
    examples = random_examples(setting.config, count)
    operations = arithmetic(setting.config, setting.config.halt_max_steps)
    in_flight = 1 if slots == 1 else None

    def loop_rate(loop: HRM) -> float:
        return loop_run(loop, examples, slots, HaltedBy.MAX_STEPS).rate

    def engine_rate(network: HRM) -> float:
        with closing(Engine(network, slots=slots, threads=THREADS)) as engine:
            return engine_run(engine, examples, in_flight).rate

    def limit(product: Product) -> float:
        return product.rate(setting.seconds) / operations

    contestants: dict[tuple[torch.dtype, str], Callable[[], float]] = {}
    for dtype in engine_dtypes(setting.config, setting.device):
        int8 = dtype == torch.int8
        forward_dtype = torch.float32 if int8 else dtype
        network = accelerate(random_network(setting, forward_dtype), int8=int8)
        product = fastest_product(setting.config, dtype, setting.device, 2 * setting.seconds)
        contestants[dtype, "engine"] = partial(engine_rate, network)
        contestants[dtype, "limit"] = partial(limit, product)
        if int8:
            continue
        contestants[dtype, "plain"] = partial(loop_rate, random_network(setting, dtype))
        if setting.is_cuda:
            compiled = _compiled(random_network(setting, dtype))
            contestants[dtype, "compiled"] = partial(loop_rate, compiled)
    measured = interleaved(list(contestants.values()), setting.rounds)
    rates = dict(zip(contestants, measured, strict=True))
    return {
        dtype: Rates(
            [
                rates.get((dtype, loop)) or rates[torch.float32, loop]
                for loop in ("plain", *(["compiled"] if setting.is_cuda else []))
            ],
            own,
            rates[dtype, "limit"],
        )
        for (dtype, name), own in rates.items()
        if name == "engine"
    }


def _compiled(network: HRM) -> HRM:
    torch.compiler.reset()  # code compiled in earlier runs counts towards torch's limit
    step = torch.compile(network.step, dynamic=False)

    def contiguous_step(
        state: State, x: Tensor, levels: Levels | None = None, positions: int | None = None
    ) -> State:
        # An example's first state is one expanded vector, which would be compiled separately.
        return step(State(state.z_H.contiguous(), state.z_L.contiguous()), x, levels, positions)

    network.step = contiguous_step  # type: ignore[method-assign]
    return network


def _rows(slots: int, rates: Mapping[torch.dtype, Rates]) -> list[list[str]]:
    return [
        [
            dtype_name(dtype),
            str(slots),
            *(f"{median(each):,.1f}" for each in (*own.loops, own.engine)),
            *(f"{median_ratio(own.engine, loop):.2f}" for loop in own.loops),
            *(f"{median_ratio(own.engine, rates[other].engine):.2f}" for other in DTYPES),
            f"{median(own.limit):,.1f}",
            f"{median_ratio(own.engine, own.limit):.0%}".replace("%", " %"),
        ]
        for dtype, own in rates.items()
    ]
