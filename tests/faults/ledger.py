"""The ledger of a fault: what Redis accepted, and what became of it.

Everything is read from outside: outcomes by message id, the two streams, the workers' counters, and
the keys that have to be empty at the end. Knows nothing of how a fault is made.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis

from schemas import Rejection, RejectionReason, Verdict
from worker.broker.keys import NOTED, QUEUES, partial, queue_lists, suspects
from worker.broker.streams import read_dead_letters, read_failures
from worker.client import Client

COUNTERS = ("evaluations_total", "failures_total", "rejected_total", "duplicates_total")
"""The counters that are compared."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    messages: int
    verdicts: int
    dead_letters: int
    lost: int
    counted_twice: int
    again: int
    """Messages that were answered again and not counted."""
    is_exact: bool
    """Whether all counters could be read. Those of a killed worker end with it."""
    problems: tuple[str, ...]
    """Everything that does not agree."""
    repetitions: int = 0
    seconds: tuple[float, ...] = ()
    """Seconds from the end of each fault to the first new outcome."""


def remaining(store: redis.Redis) -> dict[str, int]:
    """Lengths of everything that is empty once each message has its outcome."""
    lists = [key for queue in QUEUES for key in (*queue_lists(queue), suspects(queue))]
    unacked, index, faults = NOTED
    with store.pipeline() as pipe:  # at one moment, since items move from one to the other
        for key in lists:
            pipe.llen(key)
        pipe.hlen(unacked)
        pipe.zcard(index)
        pipe.hlen(faults)
        lengths = pipe.execute()
    return {key: length for key, length in zip((*lists, *NOTED), lengths, strict=True) if length}


def partial_batches(store: redis.Redis) -> int:
    """Number of batches of which some outcomes are kept until all are there."""
    return sum(1 for _ in store.scan_iter(partial("*"), count=10_000))


@dataclass
class Ledger:
    """The messages that Redis accepted.

    Args:
        poison: Message ids that have to become dead letters because of what they do to workers.
        refused: Message ids that have to become dead letters because of what is in them.
    """

    accepted: dict[str, None] = field(default_factory=dict)
    """Message ids, in the order of their sending."""
    items: set[bytes] = field(default_factory=set)
    """Items that are no tasks, and so have no message id."""
    refused: set[str] = field(default_factory=set)
    poison: set[str] = field(default_factory=set)

    def close(
        self,
        client: Client,
        store: redis.Redis,
        totals: Counter[str],
        *,
        exact: bool,
        again: int | None,
    ) -> Row:
        """Compare everything.

        Args:
            client: An agent's client.
            store: The same Redis.
            totals: The workers' counters, as far as they can be read: those of a killed worker are
                what they were before.
            exact: Whether no worker counted anything after its counters were read.
            again: Number of messages that have to be answered again, if it is certain.
        """
        outcomes = client.poll(list(self.accepted))
        verdicts = [each for each in outcomes.values() if isinstance(each, Verdict)]
        rejected = {key for key, each in outcomes.items() if isinstance(each, Rejection)}
        unsolved = {each.message_id for each in verdicts if not each.solved}
        failures = Counter(each.verdict.message_id for each in read_failures(store))
        letters = list(read_dead_letters(store))
        named = Counter(each.message_id for each in letters if each.message_id is not None)
        unnamed = Counter(each.body for each in letters if each.message_id is None)
        blamed = {
            each.message_id
            for each in letters
            if each.reason is RejectionReason.DELIVERED_TOO_OFTEN
        }
        lost = len(self.accepted.keys() - outcomes.keys()) + len(self.items - unnamed.keys())
        dead_letters = len(rejected) + len(self.items & unnamed.keys())
        counts = {
            "evaluations_total": len(verdicts),
            "failures_total": len(unsolved),
            "rejected_total": dead_letters,
        }
        surplus = {name: max(0, totals[name] - count) for name, count in counts.items()}
        extra = [
            _extra(failures, unsolved),
            _extra(named, rejected),
            _extra(unnamed, self.items),
            surplus["evaluations_total"],
            surplus["rejected_total"],
        ]
        wrong = {
            "messages lost": lost,
            "messages counted twice": sum(extra),
            "unsolved messages missing in the failure stream": len(unsolved - failures.keys()),
            "refused messages missing in the dead-letter stream": len(rejected - named.keys()),
            "sound messages refused": len(rejected - self.refused - self.poison),
            "sound messages blamed for the end of workers": len(blamed - self.poison - {None}),
            "messages evaluated that had to be refused": len(
                ((self.refused | self.poison) & outcomes.keys()) - rejected
            ),
            "partial batches left": partial_batches(store),
            **{f"left in {key}": length for key, length in remaining(store).items()},
        }
        if again is not None:
            wrong["more answered again than expected"] = totals["duplicates_total"] - again
        if exact:
            wrong |= {f"missing in {name}": count - totals[name] for name, count in counts.items()}
        return Row(
            messages=len(self.accepted) + len(self.items),
            verdicts=len(verdicts),
            dead_letters=dead_letters,
            lost=lost,
            counted_twice=sum(extra),
            again=totals["duplicates_total"],
            is_exact=exact,
            problems=tuple(f"{count} {what}" for what, count in wrong.items() if count),
        )


def _extra(found: Counter[Any], expected: Iterable[Any]) -> int:
    """Number of entries beyond one for each that is expected."""
    return (found - Counter(expected)).total()
