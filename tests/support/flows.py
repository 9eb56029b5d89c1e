"""The fate of the messages that a worker took, by its metrics."""

from worker.telemetry.flow import Flow
from worker.telemetry.scrape import Scrape


def flow(page: Scrape, queue: str) -> Flow:
    """The messages of a queue, of which none is missing."""
    found = Flow(
        *(
            int(page.total(name, queue=queue))
            for name in ("taken_total", "settled_total", "returned_total", "in_hand")
        )
    )
    assert found.taken == found.settled + found.returned + found.in_hand
    return found
