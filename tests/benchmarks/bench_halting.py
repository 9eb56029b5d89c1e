"""Gain from halting at full load: every ACT step, or as many steps as each example needs."""

from contextlib import ExitStack, closing
from statistics import median

from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from schemas import HaltedBy
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, loop_run, median_ratio
from tests.benchmarks.setting import THREADS, Setting, known_examples

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
    static, *networks = (inference.network(checkpoint, setting.device) for _ in range(3))
    with ExitStack() as stack:
        all_steps, by_q = (
            stack.enter_context(
                closing(Engine(network, slots=slots, halting=rule, threads=THREADS))
            )
            for network, rule in zip(networks, (HaltedBy.MAX_STEPS, HaltedBy.Q), strict=True)
        )
        runs = interleaved(
            [
                lambda: loop_run(plain, fixed, slots, HaltedBy.MAX_STEPS),
                lambda: engine_run(all_steps, fixed),
                lambda: loop_run(static, halting, slots, HaltedBy.Q),
                lambda: engine_run(by_q, halting),
            ],
            setting.rounds,
        )
    names = (
        f"plain loop, {steps} steps",
        f"engine, {steps} steps",
        "static batches of the engine's network, q",
        "engine, q",
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
            names, rates, runs, (fixed, fixed, halting, halting), strict=True
        )
    ]
    gain = steps / runs[3][-1].mean_steps
    bar = EFFICIENCY * gain * median(rates[1])
    return paragraphs(
        f"{checkpoint.name}, its known messages, float32, {slots} slots; {len(fixed):,} "
        f"examples per run at fixed steps and {len(halting):,} under q; rates in examples per "
        f"second, medians of {setting.rounds} paired runs.",
        table(["run", "examples/s", "ratio to plain", "mean halting step", "solved"], rows),
        f"{EFFICIENCY} x {steps} / mean halting step x the engine's rate at {steps} steps is "
        f"{bar:,.1f} examples/s; measured under q: {median(rates[3]):,.1f}, "
        f"{median_ratio(rates[3], rates[2]):.2f} times the static batches.",
    )
