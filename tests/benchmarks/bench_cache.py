"""Gain from a cache when inputs repeat, under the rule that runs every ACT step."""

import random
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from statistics import median

from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from schemas import HRMExample
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, median_ratio
from tests.benchmarks.setting import THREADS, Setting, random_examples

TITLE = "Cache"

REPEATS = (0.0, 0.5, 0.95)
"""Shares of messages with an input that has occurred before."""

ENTRIES = 100_000
"""Size of the cache: larger than the number of distinct inputs."""


def run(setting: Setting) -> str:
    checkpoint = setting.checkpoint()
    distinct = random_examples(checkpoint.config, setting.examples)
    streams = [stream(distinct, share, random.Random(0)) for share in REPEATS]
    network = Inference(slots=setting.slots).network(checkpoint, setting.device)
    with closing(Engine(network, slots=setting.slots, threads=THREADS)) as engine:
        without, *cached = interleaved(
            [
                partial(_run, engine, distinct, entries=0),
                *(partial(_run, engine, messages, entries=ENTRIES) for messages in streams),
            ],
            setting.rounds,
        )
    plain = [rate for rate, _ in without]
    rows = []
    for share, messages, runs in zip(REPEATS, streams, cached, strict=True):
        rates = [rate for rate, _ in runs]
        rows.append(
            [
                f"{100 * share:.0f} %",
                f"{len(messages):,}",
                f"{median(plain):,.1f}",
                f"{median(rates):,.1f}",
                f"{median_ratio(rates, plain):.2f}",
                f"{median(hits for _, hits in runs):,.0f}",
            ]
        )
    return paragraphs(
        f"{checkpoint.name}, float32, {checkpoint.config.halt_max_steps} ACT steps, "
        f"{setting.slots} slots, {4 * setting.slots} messages in flight; {len(distinct):,} "
        "distinct inputs per run. Rates in messages per second, medians of "
        f"{setting.rounds} paired runs, each starting with an empty cache. The rate without a "
        "cache was measured with the distinct inputs alone, since a repeat costs the same there.",
        table(["repeats", "messages", "without", "with cache", "ratio", "hits"], rows),
    )


def stream(distinct: Sequence[HRMExample], share: float, source: random.Random) -> list[HRMExample]:
    """All of `distinct`, and repeats of earlier ones in between; `share` of all are repeats."""
    total = round(len(distinct) / (1 - share))
    first = {0, *source.sample(range(1, total), len(distinct) - 1)}
    met: list[HRMExample] = []
    messages = []
    for place in range(total):
        if place in first:
            met.append(distinct[len(met)])
            messages.append(met[-1])
        else:
            messages.append(source.choice(met))
    return messages


def _run(engine: Engine, messages: Sequence[HRMExample], *, entries: int) -> tuple[float, int]:
    """Rate in messages per second, and number of cache hits."""
    inference = Inference(slots=engine.statistics.slots, cached_predictions=entries)
    predictor = inference.cached(engine, engine.networks[0].config)
    rate = engine_run(predictor, messages).rate
    return rate, predictor.statistics.cache_hits
