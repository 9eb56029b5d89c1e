"""The engine and the plain loop at full width, with every example computed for every ACT step."""

from contextlib import closing
from statistics import median

import torch
from torch import Tensor

from hrm.inference.engine import Engine
from hrm.kernels import accelerate
from hrm.model.network import HRM, Levels, State
from schemas import HaltedBy
from tests.benchmarks.limit import GPU_SIZE, arithmetic, fastest_product
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, loop_run, median_ratio
from tests.benchmarks.setting import (
    DTYPES,
    THREADS,
    Setting,
    dtype_name,
    random_examples,
    random_network,
)

TITLE = "Engine at fixed steps"


def run(setting: Setting) -> str:
    config, steps = setting.config, setting.config.halt_max_steps
    operations = arithmetic(config, steps)
    rows = [
        _row(dtype, slots, _rates(setting, dtype, slots, count))
        for dtype in DTYPES
        for slots, count in ((setting.slots, setting.examples), (1, setting.single_examples))
    ]
    loops = ["plain loop", *(["compiled loop"] if setting.is_cuda else [])]
    header = ["dtype", "slots", *loops, "engine", *(f"engine / {loop}" for loop in loops)]
    return paragraphs(
        f"D {config.hidden_size}, {config.H_layers} + {config.L_layers} layers, random "
        f"weights, {steps} ACT steps per example; {setting.examples:,} examples per run, "
        f"{setting.single_examples} with one slot and one example at a time; rates in examples per "
        f"second, medians of {setting.rounds} paired runs.",
        table([*header, "limit", "engine / limit"], rows),
        "The limit is the rate of examples if nothing but their matrix products "
        f"({operations / 1e9:.1f} GFLOP each) took time, at the speed of {_product_name(setting)}, "
        f"measured alone for {setting.seconds} s in every round.",
    )


def _product_name(setting: Setting) -> str:
    if setting.is_cuda:
        return f"a product of {GPU_SIZE} by {GPU_SIZE}"
    return "the fastest of the network's products, in torch's forms and the engine's"


def _rates(setting: Setting, dtype: torch.dtype, slots: int, count: int) -> list[list[float]]:
    """Rates of the plain loop, the compiled loop (on a GPU), the engine and the limit, by round."""
    examples = random_examples(setting.config, count)
    operations = arithmetic(setting.config, setting.config.halt_max_steps)
    product = fastest_product(setting.config, dtype, setting.device, 2 * setting.seconds)
    plain = [random_network(setting, dtype)]
    if setting.is_cuda:
        plain.append(_compiled(random_network(setting, dtype)))
    network = accelerate(random_network(setting, dtype))
    in_flight = 1 if slots == 1 else None

    def engine_rate() -> float:
        with closing(Engine(network, slots=slots, threads=THREADS)) as engine:
            return engine_run(engine, examples, in_flight).rate

    loops = [
        lambda loop=loop: loop_run(loop, examples, slots, HaltedBy.MAX_STEPS).rate for loop in plain
    ]
    return interleaved(
        [*loops, engine_rate, lambda: product.rate(setting.seconds) / operations], setting.rounds
    )


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


def _row(dtype: torch.dtype, slots: int, rates: list[list[float]]) -> list[str]:
    *loops, engine, limit = rates
    return [
        dtype_name(dtype),
        str(slots),
        *(f"{median(own):,.1f}" for own in (*loops, engine)),
        *(f"{median_ratio(engine, loop):.2f}" for loop in loops),
        f"{median(limit):,.1f}",
        f"{median_ratio(engine, limit):.0%}".replace("%", " %"),
    ]
