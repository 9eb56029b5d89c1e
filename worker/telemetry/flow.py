"""The messages of a queue that came into a worker's hands, and where they are now.

Knows numbers; nothing of how a message changes hands.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client.metrics_core import Metric

from worker.telemetry.families import counter, gauge


class Flow(NamedTuple):
    """Messages of one queue: `taken` is the sum of the others at any moment.

    A task counts as one message until it has been read, and as at least one then. If it is
    delivered again, its messages count that have no outcome yet.
    """

    taken: int
    settled: int
    """Messages that have an outcome in Redis: evaluated, refused, or answered again."""
    returned: int
    """Messages that went back to their queue."""
    in_hand: int
    """Messages that this worker has not acknowledged."""


def flow_metrics(flows: Mapping[str, Flow]) -> Iterable[Metric]:
    """Build the metrics of all queues, from one moment."""
    for name, text in (
        ("taken", "Messages that this worker took from the queue."),
        ("settled", "Messages that this worker took and stored an outcome of."),
        ("returned", "Messages that this worker took and put back into their queue."),
    ):
        values: dict[tuple[str, ...], float] = {
            (queue,): getattr(flow, name) for queue, flow in flows.items()
        }
        yield counter(name, f"{text} taken = settled + returned + in_hand.", values, "queue")
    yield gauge(
        "in_hand",
        "Messages that this worker took and has neither settled nor put back.",
        {(queue,): float(flow.in_hand) for queue, flow in flows.items()},
        "queue",
    )
