"""The share of an engine's own rate that arrives in Redis as verdicts, without a cache."""

from contextlib import closing
from functools import partial
from statistics import median

from hrm.inference.config import Inference
from schemas import HaltedBy
from tests.benchmarks.bench_path import BATCH, ITEMS, rate, two_processes
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, median_ratio
from tests.benchmarks.setting import THREADS, Setting, known_examples

TITLE = "The way of a message beside its engine"


def run(setting: Setting) -> str:
    rows = [
        ("single messages", 1, HaltedBy.Q, 0, setting.halting_messages),
        ("single messages", 1, HaltedBy.MAX_STEPS, 0, setting.fixed_messages),
    ]
    return paragraphs(_engine(setting), two_processes(setting, rows))


def _engine(setting: Setting) -> str:
    rows = []
    for halting, count in (
        (HaltedBy.Q, setting.halting_messages),
        (HaltedBy.MAX_STEPS, setting.fixed_messages),
    ):
        several = min(BATCH, count // ITEMS)
        runs = [partial(_engine_rate, setting, halting, count)]
        runs += [
            partial(rate, setting, count, batch, halting=halting, cached=0)
            for batch in (1, several)
        ]
        engine, *workers = interleaved(runs, setting.rounds)
        names = "single messages", f"batches of {several}"
        for name, rates in zip(names, workers, strict=True):
            rows.append(
                [
                    halting.value,
                    name,
                    f"{median(engine):,.0f}",
                    f"{median(rates):,.0f}",
                    f"{median_ratio(rates, engine):.2f}",
                ]
            )
    return paragraphs(
        f"{setting.checkpoints[0].name}, its known messages, without a cache, float32, "
        f"{setting.slots} slots, {THREADS} threads, beside the engine alone with as many examples:",
        table(["rule", "messages", "engine", "a worker", "ratio"], rows, left=2),
    )


def _engine_rate(setting: Setting, halting: HaltedBy, count: int) -> float:
    checkpoint = setting.checkpoint()
    inference = Inference(halting=halting, slots=setting.slots, threads=THREADS)
    with closing(inference.open(checkpoint, setting.device)) as engine:
        return engine_run(engine, known_examples(checkpoint, count)).rate
