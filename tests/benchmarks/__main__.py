"""`python -m tests.benchmarks`: speeds side by side, as tables that are also written to RESULTS.md.

A run replaces its own sections there and leaves the others, for example those of other hardware.
The tables of a quick run are only printed.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import torch

from tests.benchmarks import (
    bench_cache,
    bench_conversion,
    bench_engine,
    bench_ensemble,
    bench_halting,
    bench_latency,
    bench_live,
    bench_metrics,
    bench_path,
    bench_precision,
    bench_redis,
    bench_scale,
    bench_share,
    bench_training,
    bench_vocabulary,
)
from tests.benchmarks.page import section, with_section
from tests.benchmarks.setting import ON_GPU, Setting, hardware, quick

RESULTS = Path(__file__).parent / "RESULTS.md"


class Benchmark(Protocol):
    TITLE: str

    def run(self, setting: Setting) -> str:
        """Run the benchmark and return a description and a table, as Markdown."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "conversion": bench_conversion,
    "vocabulary": bench_vocabulary,
    "engine": bench_engine,
    "halting": bench_halting,
    "latency": bench_latency,
    "live": bench_live,
    "path": bench_path,
    "share": bench_share,
    "metrics": bench_metrics,
    "cache": bench_cache,
    "precision": bench_precision,
    "redis": bench_redis,
    "scale": bench_scale,
    "ensemble": bench_ensemble,
    "training": bench_training,
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only printed")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args(arguments)
    setting = Setting() if options.device == "cpu" else replace(ON_GPU, device=options.device)
    if options.quick:
        setting = quick(setting)
    for name in options.only:
        if setting.is_cuda and name in ("conversion", "redis", "scale", "training"):
            continue  # a GPU makes no difference in it
        text = _section(BENCHMARKS[name], setting, arguments)
        print(text, flush=True)  # noqa: T201 - the page
        if not options.quick:
            RESULTS.write_text(with_section(RESULTS.read_text(), text))


def _section(benchmark: Benchmark, setting: Setting, arguments: Sequence[str]) -> str:
    command = shlex.join(["python", "-m", "tests.benchmarks", *arguments])
    place = "GPU" if setting.is_cuda else "CPU"
    origin = (
        f"{datetime.now(UTC).date()}, {hardware(setting.device)}, torch {torch.__version__}, "
        f"`{command}`."
    )
    return section(f"{benchmark.TITLE}, on a {place}", origin, benchmark.run(setting))


if __name__ == "__main__":
    torch.set_num_threads(1)  # for this thread, which measures nothing
    main(sys.argv[1:])
