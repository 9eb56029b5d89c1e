"""The story of an alarm, from messages to alerts, with simulated time.

Ten agents send real messages through a real Redis to a real worker with a stub evaluator, and the
monitor sends its canaries. Each round is a minute to Prometheus, which evaluates the shipped rules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from schemas import Category, SQEMessage
from tests.support.history import History
from tests.support.processes import STUB, Worker
from worker.broker.keys import NO_NAMESPACE
from worker.client import Client
from worker.monitor.canary import Canary, Question
from worker.monitor.figures import Figures
from worker.monitor.reading import Reader

AGENTS = tuple(f"agent-{number}" for number in range(10))

CATEGORIES = (Category.CI_CD, Category.MONITORING)

HEALTHY, AFTER = 35, 15
"""Minutes before and after the change. An alert has to come within a quarter of an hour."""

FIRING = 'count by (alertname, agent, category) (ALERTS{alertstate="firing"})'

EVER = 'count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))'


@dataclass
class Deployment:
    """A worker, a monitor and ten agents, of which `changed` fails in one category."""

    client: Client
    worker: Worker
    figures: Figures
    canary: Canary
    fault: Path
    """While this file exists, the worker solves nothing."""
    history: History
    changed: str | None = None

    def run(self, minutes: int) -> None:
        """Let so many minutes pass."""
        for _ in range(minutes):
            messages = [
                self._message(agent, category)
                for agent in AGENTS
                for category in CATEGORIES
                for _ in range(2)
            ]
            ids = self.client.submit_many(messages)
            assert len(list(self.client.results(ids))) == len(messages)
            self.canary.step()
            families = self.figures.registry.collect()
            monitor = [sample for family in families for sample in family.samples]
            self.history.scrape(
                {
                    ("production/workers", "10.0.0.7:9108"): self.worker.scrape().samples,
                    ("production/monitor", "10.0.0.8:9109"): monitor,
                }
            )

    def _message(self, agent: str, category: Category) -> SQEMessage:
        fails = agent == self.changed and category is Category.CI_CD
        prompt = "fail" if fails else f"fail-while {self.fault}"
        return SQEMessage.create(
            agent_id=agent, prompt=prompt, completion="done", category=category
        )


@contextmanager
def deployment(client: Client, store: redis.Redis, url: str, folder: Path) -> Iterator[Deployment]:
    figures = Figures(Reader(store, NO_NAMESPACE))
    fault = folder / "fault"
    known = SQEMessage.create(agent_id="any", prompt=f"fail-while {fault}", completion="done")
    canary = Canary(client, store, NO_NAMESPACE, [Question(known)], seconds=60, note=figures.canary)
    with Worker.start(STUB, folder, url) as worker:
        worker.wait_until_ready()
        yield Deployment(client, worker, figures, canary, fault, History())


def test_an_agent_that_changes_in_one_category_is_named_and_the_workers_are_sound(
    client: Client, store: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    with deployment(client, store, redis_url, tmp_path) as running:
        running.run(HEALTHY)
        running.changed = AGENTS[3]
        running.run(AFTER)
    named = ("alertname", "SQEHRMAgentChanged"), ("agent", AGENTS[3])
    end = HEALTHY + AFTER - 1
    running.history.check(
        tmp_path,
        [
            (HEALTHY - 1, EVER, {}),
            (end, FIRING, {named: 1, (*named, ("category", "ci_cd")): 1}),
            (end, "sqe_hrm_canary_failed:increase10m + 0", {(): 0}),
            (end, "sqe_hrm_canary_answered:increase10m > bool 5", {(): 1}),
        ],
    )


def test_a_worker_that_breaks_is_told_by_the_canary_and_no_agent_is_named(
    client: Client, store: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    with deployment(client, store, redis_url, tmp_path) as running:
        running.run(HEALTHY)
        running.fault.touch()
        running.run(AFTER)
    broken = (("alertname", "SQEHRMCanaryFailing"),)
    end = HEALTHY + AFTER - 1
    running.history.check(
        tmp_path,
        [
            (HEALTHY - 1, EVER, {}),
            (end, FIRING, {broken: 1}),
            (end, EVER, {broken: 1}),
        ],
    )
