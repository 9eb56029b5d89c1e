"""`python -m tests.benchmarks.peers`: the engine beside LitServe and Ray Serve, over HTTP.

The same client sends the same known examples to each server in turn. Replaces its own section of
RESULTS.md; the table of a quick run is only printed.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median

import torch

from schemas import HaltedBy
from tests.benchmarks.__main__ import RESULTS
from tests.benchmarks.page import paragraphs, section, table, with_section
from tests.benchmarks.peers.load import at_random, full_load, is_serving
from tests.benchmarks.peers.serving import BATCH_SECONDS, Options
from tests.benchmarks.runs import interleaved, median_ratio, percentile
from tests.benchmarks.setting import THREADS, Setting, hardware, known_examples, quick
from tests.support.processes import ROOT, wait_for
from worker.broker.embedded import _free_port
from worker.child import end_child, start_child

TITLE = "The engine beside LitServe and Ray Serve"

SERVERS = {"engine": "engine", "LitServe": "litserve", "Ray Serve": "ray"}
"""The servers' names, and the beginning of their modules' names."""

START_SECONDS = 300.0
"""Time for a server to start, also on a busy machine."""

IN_FLIGHT_PER_SLOT = 4
"""Requests under way at full load for each slot, so that a batch is always full."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only printed")
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=Setting().rounds)
    parser.add_argument(
        "--halting", nargs="+", type=HaltedBy, choices=HaltedBy, default=list(HaltedBy)
    )
    options = parser.parse_args()
    setting = quick(Setting()) if options.quick else replace(Setting(), rounds=options.rounds)
    tables = [_compare(setting, rule, options.only) for rule in options.halting]
    versions = ", ".join(f"{name} {version(name)}" for name in ("litserve", "ray", "torch"))
    text = section(
        f"{TITLE}, on a CPU",
        f"{datetime.now(UTC).date()}, {hardware('cpu')}, {versions}, "
        f"`{shlex.join(['python', '-m', 'tests.benchmarks.peers', *sys.argv[1:]])}`.",
        f"{setting.checkpoints[0].name}, its known examples, float32, {setting.slots} slots or "
        f"examples in a batch, {THREADS} threads. All three serve the network with this project's "
        "kernels over HTTP; the peers wait "
        f"{1000 * BATCH_SECONDS:g} ms for a batch to fill. Full load: "
        f"{IN_FLIGHT_PER_SLOT * setting.slots} requests are under way. Half load: requests arrive "
        "at random (Poisson), at half the rate of the slowest server at full load. Medians of "
        f"{setting.rounds} rounds; a ratio is the median of the rounds' own. The servers that are "
        "not measured run as well, without requests.",
        *tables,
    )
    print(text)  # noqa: T201 - the page
    if not options.quick:
        RESULTS.write_text(with_section(RESULTS.read_text(), text))


def _compare(setting: Setting, halting: HaltedBy, names: Sequence[str]) -> str:
    """Measure the servers under one halting rule."""
    number = setting.halting_examples if halting is HaltedBy.Q else setting.examples
    number = max(number, 2 * IN_FLIGHT_PER_SLOT * setting.slots)
    examples = known_examples(setting.checkpoint(), number)
    bodies = [example.model_dump_json().encode() for example in examples]
    with contextlib.ExitStack() as running:
        urls = [running.enter_context(_server(setting, halting, name)) for name in names]
        in_flight = IN_FLIGHT_PER_SLOT * setting.slots
        loads = [partial(full_load, url, bodies, in_flight) for url in urls]
        given = interleaved(loads, setting.rounds)
        rates = [[run.rate for run in own] for own in given]
        slowest = min(median(own) for own in rates)
        requests = [partial(_at_half, url, bodies, slowest / 2, count()) for url in urls]
        seconds = interleaved(requests, setting.rounds)
    rows = [
        [
            name,
            f"{median(own):,.1f}",
            f"{median_ratio(rates[0], own):.2f}",
            *(
                f"{1000 * median(percentile(one, share) for one in times):,.1f}"
                for share in (0.5, 0.99)
            ),
            f"{given[place][0].solved(examples):.1%}".replace("%", " %"),
        ]
        for place, (name, own, times) in enumerate(zip(names, rates, seconds, strict=True))
    ]
    header = ["server", "requests a second", f"{names[0]} / server", "p50, ms", "p99, ms", "solved"]
    return paragraphs(
        f"Rule `{halting.value}`; {number} requests in a run, {slowest / 2:,.1f} a second at half "
        "load:",
        table(header, rows),
    )


def _at_half(url: str, bodies: Sequence[bytes], rate: float, seeds: Iterator[int]) -> list[float]:
    return at_random(url, bodies, rate, next(seeds))


@contextlib.contextmanager
def _server(setting: Setting, halting: HaltedBy, name: str) -> Iterator[str]:
    """Start a server, and wait until it answers; the value is the URL for requests."""
    port = _free_port()
    options = Options(
        setting.checkpoints[0].resolve(), halting, setting.slots, THREADS, port
    ).command()
    command = [sys.executable, "-m", f"tests.benchmarks.peers.{SERVERS[name]}_server", *options]
    url = f"http://127.0.0.1:{port}/predict"
    body = known_examples(setting.checkpoint(), 1)[0].model_dump_json().encode()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # A worker sets the policy as well: OpenMP's threads must not wait actively on few cores.
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        with log.open("wb") as output:
            process = start_child(command, log=output, cwd=ROOT, environ=environ)

        def is_up() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {log.read_text()[-2000:]}")
            return is_serving(url, body)

        try:
            wait_for(is_up, f"{name} serves", START_SECONDS)
            yield url
        finally:
            end_child(process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started


if __name__ == "__main__":
    torch.set_num_threads(1)  # for this process, which computes nothing
    main()
