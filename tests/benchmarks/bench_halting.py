"""Gain from halting at full load: every ACT step, or as many steps as each example needs."""

from contextlib import ExitStack, closing
from statistics import median

import torch

from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from schemas import HaltedBy
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, loop_run, median_ratio
from tests.benchmarks.setting import (
    THREADS,
    Setting,
    dtype_name,
    engine_dtypes,
    known_examples,
)

TITLE = "Engine under the q rule"

EFFICIENCY = 0.9
"""Share that the engine should reach of the gain that the mean halting step allows."""


def run(setting: Setting) -> str:
    checkpoint, slots = setting.checkpoint(), setting.slots
    steps = checkpoint.config.halt_max_steps
    fixed = known_examples(checkpoint, setting.examples)
    halting = known_examples(checkpoint, setting.halting_examples)
    inference = Inference(slots=slots)
    plain = checkpoint.build(device=setting.device)
    static = inference.network(checkpoint, setting.device)
    _, *others = engine_dtypes(checkpoint.config, setting.device)
    with ExitStack() as stack:

        def started(rule: HaltedBy, dtype: torch.dtype = torch.float32) -> Engine:
            network = Inference(slots=slots, dtype=dtype).network(checkpoint, setting.device)
            engine = Engine(network, slots=slots, halting=rule, threads=THREADS)
            return stack.enter_context(closing(engine))

        all_steps, by_q = started(HaltedBy.MAX_STEPS), started(HaltedBy.Q)
        in_others = [started(HaltedBy.Q, dtype) for dtype in others]
        runs = interleaved(
            [
                lambda: loop_run(plain, fixed, slots, HaltedBy.MAX_STEPS),
                lambda: engine_run(all_steps, fixed),
                lambda: loop_run(static, halting, slots, HaltedBy.Q),
                lambda: engine_run(by_q, halting),
                *(lambda engine=engine: engine_run(engine, halting) for engine in in_others),
            ],
            setting.rounds,
        )
    names = (
        f"plain loop, {steps} steps",
        f"engine, {steps} steps",
        "static batches of the engine's network, q",
        "engine, q",
        *(f"engine, q, {dtype_name(dtype)}" for dtype in others),
    )
    rates = [[each.rate for each in own] for own in runs]
    rows = [
        [
            name,
            f"{median(own):,.1f}",
            f"{median_ratio(own, rates[0]):.2f}",
            f"{last.mean_steps:.2f}",
            f"{last.solved(examples):.1%}".replace("%", " %"),
        ]
        for name, own, (*_, last), examples in zip(
            names, rates, runs, (fixed, fixed, *[halting] * (2 + len(others))), strict=True
        )
    ]
    gain = steps / runs[3][-1].mean_steps
    bar = EFFICIENCY * gain * median(rates[1])
    return paragraphs(
        f"{checkpoint.name}, its known messages, float32 unless named, {slots} slots; "
        f"{len(fixed):,} examples per run at fixed steps and {len(halting):,} under q; rates in "
        f"examples per second, medians of {setting.rounds} paired runs.",
        table(["run", "examples/s", "ratio to plain", "mean halting step", "solved"], rows),
        f"{EFFICIENCY} x {steps} / mean halting step x the engine's rate at {steps} steps is "
        f"{bar:,.1f} examples/s; measured under q: {median(rates[3]):,.1f}, "
        f"{median_ratio(rates[3], rates[2]):.2f} times the static batches.",
    )
