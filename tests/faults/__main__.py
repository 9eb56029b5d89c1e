"""`python -m tests.faults`: every fault in its full size, and the table in RESULTS.md.

With some faults only, or in short, the table is only printed. It runs in a network namespace of its
own where the system permits that, so that a worker can be cut off without anybody being told.
"""

import argparse
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.setting import hardware
from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scenarios.table import SCENARIOS, Scenario
from tests.support import loopback
from tests.support.servers import server

RESULTS = Path(__file__).parent / "RESULTS.md"

HEADER = (
    "fault",
    "repetitions",
    "messages",
    "verdicts",
    "dead letters",
    "lost",
    "counted twice",
    "answered again",
    "seconds until consuming again",
)

NONE = "-"

TITLE = "# Faults"

ABOUT = """\
Each fault happens to real worker processes and a real Redis, under load: messages that are \
solved, unsolved and refused, single and in batches, live and from files, and items that are no \
tasks. \
Afterwards the ledger is closed. Every message that Redis accepted has exactly one outcome, a \
verdict or a dead letter. The streams have each unsolved and each refused message once. The \
workers' counters agree: their sums are equal to the outcomes, or, if a worker was killed with its \
counters, not greater. Nothing is left in queues, deliveries, faults and partial batches. No sound \
message was refused."""

NOTES = """\
*Answered again* are messages that were evaluated twice and counted once. *Seconds until consuming \
again* run from the end of the fault to the first new outcome: median and, if it differs, the \
worst. They include the start of a worker if its predecessor ended: about a second for one with a \
stub engine, and the import of torch for a real one. For a Sentinel they run from the kill."""


def main(arguments: Sequence[str]) -> int:
    """Run the faults; returns the exit status, which is 0 if every ledger adds up."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="FAULT", help="some faults")
    parser.add_argument("--short", action="store_true", help="small sizes, as in the suite")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    rows: list[list[str]] = []
    problems: list[str] = []
    for name in options.only or SCENARIOS:
        scenario = SCENARIOS[name]
        row, wrong = _run(name, scenario, scenario.short if options.short else scenario.full)
        rows.append(row)
        problems.extend(f"- {row[0]}: {each}" for each in wrong)
    command = shlex.join(["python", "-m", "tests.faults", *arguments])
    minutes = (time.monotonic() - begun) / 60
    origin = (
        f"{datetime.now(UTC).date()}, {hardware('cpu')}, {_server_version()}, `{command}`: "
        f"{minutes:.1f} minutes."
    )
    wrong_part = ["**Not as it has to be:**", "\n".join(problems)] if problems else []
    page = paragraphs(TITLE, ABOUT, origin, table(HEADER, rows), *wrong_part, NOTES) + "\n"
    print(page)  # noqa: T201
    if not (options.only or options.short):
        RESULTS.write_text(page)
    return 1 if problems else 0


def _run(name: str, scenario: Scenario, size: Size) -> tuple[list[str], Sequence[str]]:
    """The row of a fault as cells, and what is wrong with it."""
    folder = Path(tempfile.mkdtemp(prefix=f"fault-{name}-"))
    begun = time.monotonic()
    try:
        row = scenario.run(folder, size)
        cells, wrong = [scenario.title_of(size), *_cells(row)], row.problems
    except Exception as error:  # noqa: BLE001 - the other faults have their rows all the same
        traceback.print_exc()
        cells = [scenario.title_of(size), *(NONE for _ in HEADER[1:])]
        wrong = (f"{type(error).__name__}: {error}".partition("\n")[0],)
    took = time.monotonic() - begun
    print(f"{name}, {took:.0f} s: {', '.join(cells[1:])}", *wrong, sep="\n  ", flush=True)  # noqa: T201
    if wrong:
        print(f"  logs: {folder}", flush=True)  # noqa: T201
    else:
        shutil.rmtree(folder)
    return cells, wrong


def _cells(row: Row) -> list[str]:
    counts = (
        row.repetitions,
        row.messages,
        row.verdicts,
        row.dead_letters,
        row.lost,
        row.counted_twice,
    )
    return [
        *(f"{each:,}" for each in counts),
        ("" if row.is_exact else "≥ ") + f"{row.again:,}",
        _seconds(row.seconds),
    ]


def _seconds(seconds: Sequence[float]) -> str:
    if not seconds:
        return NONE
    middle, worst = f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"
    return middle if middle == worst else f"{middle}, at most {worst}"


def _server_version() -> str:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as running:
        info: Any = running.store.info("server")
    return (
        f"Valkey {info['valkey_version']}"
        if "valkey_version" in info
        else (f"Redis {info['redis_version']}")
    )


if __name__ == "__main__":
    loopback.exec_in_own_namespace([sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    if loopback.is_own():
        loopback.set_up(True)
    sys.exit(main(sys.argv[1:]))
