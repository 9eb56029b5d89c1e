"""Runs of many cases through one input: what became of them, and what should not have happened.

Knows cases, seeds and counts; nothing of the inputs themselves.
"""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.mutation import SECRET, Mutator

SHOWN = 1000
"""Characters of a case that are shown."""

MAX_DETAIL = 2000
"""Longest text of an error. A message's may list five problems, each with a name of 80 characters,
or ten times as many if they have to be escaped."""

MAX_QUOTE = 9
"""Times that `SECRET` may come in a row in an error, which quotes at most 80 characters of a name
in one place."""

Check = Callable[[Any], str | None]
"""Feeds a case to the code. Returns why it was refused, None if it was accepted; raises anything if
the code did what it should not."""


@dataclass(frozen=True)
class Finding:
    """A case that was neither accepted nor refused."""

    input: str
    again: str
    """Options of the command that repeat it."""
    case: str
    error: str


@dataclass
class Tally:
    """The results of the cases of one input."""

    input: str
    cases: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, outcome: str | None) -> None:
        if outcome is None:
            self.accepted += 1
        else:
            self.refused[outcome] += 1

    def unexpected(self, again: str, case: object, error: BaseException) -> None:
        text = repr(case)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
        trace = "".join(traceback.format_exception(error)[-6:])
        self.findings.append(Finding(self.input, again, shown, trace))


@dataclass(frozen=True)
class Input:
    """A place at which something arrives from outside."""

    name: str
    share: int
    """How many of the cases of a run are this input's, compared with other inputs."""
    make: Callable[[Mutator], Any]
    check: Callable[[], AbstractContextManager[Check]]
    """Opens what the cases need."""

    def case(self, seed: int, number: int) -> Any:  # noqa: ANN401
        """Make one case; it depends on no other."""
        return self.make(Mutator(f"{seed}/{self.name}/{number}"))

    def run(self, seed: int, numbers: Sequence[int]) -> Tally:
        """Check the cases with these numbers."""
        tally = Tally(self.name)
        start = time.monotonic()
        with self.check() as check:
            for number in numbers:
                case = self.case(seed, number)
                tally.cases += 1
                try:
                    tally.count(check(case))
                except Exception as error:  # noqa: BLE001 - these are what is looked for
                    tally.unexpected(f"--case {number}", case, error)
        tally.seconds = time.monotonic() - start
        return tally


def simply(check: Check) -> Callable[[], AbstractContextManager[Check]]:
    """The `check` of an input that needs nothing opened."""
    return lambda: nullcontext(check)


def is_proper(text: str) -> bool:
    """Whether an error's text is one short line that quotes no secret at length."""
    return (
        text.isprintable() and 0 < len(text) <= MAX_DETAIL and SECRET * (MAX_QUOTE + 1) not in text
    )


def report(tallies: Iterable[Tally]) -> Iterator[str]:
    """Yield the lines of the table, each input's when it is done."""
    kept = []
    yield "input             cases  accepted  refused  unexpected  seconds"
    for tally in tallies:
        kept.append(tally)
        yield (
            f"{tally.input:14} {tally.cases:8,} {tally.accepted:9,} {tally.refused.total():8,} "
            f"{len(tally.findings):11,} {tally.seconds:8.1f}"
        )
        reasons = [f"{reason} {count:,}" for reason, count in tally.refused.most_common()]
        yield from (f"    {', '.join(reasons[at : at + 5])}" for at in range(0, len(reasons), 5))
    findings = sum(len(each.findings) for each in kept)
    yield (
        f"{'all':14} {sum(each.cases for each in kept):8,} "
        f"{sum(each.accepted for each in kept):9,} "
        f"{sum(each.refused.total() for each in kept):8,} {findings:11,} "
        f"{sum(each.seconds for each in kept):8.1f}"
    )
