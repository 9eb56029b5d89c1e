"""`python -m tests.fuzz`: damaged inputs of every kind, and a table of what became of them.

A case follows from the seed, its input and its number alone. One that was neither accepted nor
refused is printed with the command that repeats it, and the exit status is then 1.
"""

import argparse
import random
import shlex
import sys
from collections.abc import Iterator, Sequence

from tests.fuzz.connections import HTTP
from tests.fuzz.delivery import DELIVERY
from tests.fuzz.inputs import INPUTS, quiet
from tests.fuzz.runs import Finding, Input, Tally, report

ALL = {each.name: each for each in (*INPUTS, HTTP, DELIVERY)}

CASES = 120_000
"""Cases of a full run, which takes half a minute to two minutes on two cores."""

SHOWN = 5
"""Findings that are printed of each input."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="of all inputs together")
    parser.add_argument("--seed", type=int, help="a random one if it is not given")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--case", type=int, help="the number of one case to repeat")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    chosen = [ALL[name] for name in options.only]
    shown = f"seed {seed}, {options.cases:,} cases"
    print(shown if options.case is None else f"seed {seed}, case {options.case}")  # noqa: T201
    tallies: list[Tally] = []

    def run() -> Iterator[Tally]:
        for each in chosen:
            numbers = cases_of(each, chosen, options.cases)
            if options.case is not None:
                numbers = range(options.case, options.case + 1)
            tallies.append(each.run(seed, numbers))
            yield tallies[-1]

    with quiet():
        for line in report(run()):
            print(line, flush=True)  # noqa: T201
    for tally in tallies:
        for finding in tally.findings[:SHOWN]:
            print(described(finding, seed))  # noqa: T201
    return int(any(tally.findings for tally in tallies))


def cases_of(each: Input, chosen: Sequence[Input], cases: int) -> range:
    """The numbers of an input's cases: its share of all, rounded up."""
    return range(-(-cases * each.share // sum(other.share for other in chosen)))


def described(finding: Finding, seed: int) -> str:
    """A finding, and how to repeat it."""
    command = [".venv/bin/python", "-m", "tests.fuzz", "--seed", str(seed), "--only", finding.input]
    return (
        f"\n{finding.input}: {finding.case}\n{finding.error}\n{shlex.join(command)} {finding.again}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
