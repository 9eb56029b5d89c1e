"""Every query of every panel, variable and alert has data, once a real Prometheus has scraped a
real deployment to which agents sent messages of every kind."""

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.pictures.answers import Source
from tests.pictures.drawing import draw
from tests.support.dashboards import Board, boards
from tests.support.deployment import Deployment, deployment
from tests.support.prometheus import Prometheus, Sample, shipped_rules

BOARDS = boards()

SHORT = {
    "window": "1m",
    "before": "5s",
    "__rate_interval": "1m",
    "__range": "1m",
}
"""Times in place of half an hour and more."""

EMPTY = {
    "sqe-hrm-fleet / Memory of the GPU / A": "the workers are on the CPU",
    "sqe-hrm-overview / Alerts that fire now / A": "no alert has waited for long enough",
    "sqe-hrm-overview / @Alerts": "no alert has waited for long enough",
    "sqe-hrm-failures / @Alerts": "no alert has waited for long enough",
    "sqe-hrm-fleet / @Alerts": "no alert has waited for long enough",
}
"""Queries that may have no data in this run, and why."""

MOST_SERIES = 20
"""Series of one query that can be told apart; reasons of refusals are the most."""

DEADLINE = 120.0
"""Seconds until everything has data; it takes about half a minute."""


def asked(board: Board) -> dict[str, str]:
    """Everything that a dashboard asks, by its place, over short times."""
    return {place: board.filled(expr, **SHORT) for place, expr in board.every_expression.items()}


SERIES = re.compile(r"(?:[\w:]*sqe_hrm_[\w:]+|\bup\b|\bALERTS\b)(?:\{[^}]*\})?")


def compared() -> dict[str, str]:
    """The series that alerts and recordings compare, whatever the limits are, by themselves."""
    rules = [rule for group in shipped_rules()["groups"] for rule in group["rules"]]
    return {series: series for rule in rules for series in SERIES.findall(rule["expr"])}


EXPRESSIONS = compared() | {place: expr for board in BOARDS for place, expr in asked(board).items()}


@dataclass(frozen=True)
class Observed:
    """The Prometheus of a deployment, and what it answered."""

    prometheus: Prometheus
    answers: Mapping[str, list[Sample]]
    """The first answer to each query that has numbers. On a busy machine scrapes are late, and a
    later answer may have none."""


def finite(samples: list[Sample]) -> list[Sample]:
    return [(labels, value) for labels, value in samples if math.isfinite(value)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A deployment that gets messages of every kind until every query has had an answer."""
    folder = tmp_path_factory.mktemp("observed")
    with deployment(folder, scrape_seconds=1, canary_seconds=1) as running:
        answers: dict[str, list[Sample]] = {}
        end = time.monotonic() + DEADLINE
        while EXPRESSIONS.keys() - EMPTY.keys() - answers.keys() and time.monotonic() < end:
            send_everything(running)
            for place in EXPRESSIONS.keys() - answers.keys():
                if found := finite(running.prometheus.instant(EXPRESSIONS[place])):
                    answers[place] = found
        yield Observed(running.prometheus, answers)


def send_everything(running: Deployment) -> None:
    agents = running.agents
    agents.answer(*agents.known("planner", 40), *agents.known("coder", 20))
    agents.answer(*agents.drifting("tester", 20), *agents.unseen("coder", 5))
    agents.answer(*agents.unknown("planner", 4))
    agents.wait(agents.backfill(50) + agents.malformed(2))
    agents.twice("coder")


def test_what_may_be_empty_exists() -> None:
    assert EMPTY.keys() <= EXPRESSIONS.keys()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_everything_that_a_dashboard_asks_has_data(board: Board, observed: Observed) -> None:
    assert asked(board).keys() - observed.answers.keys() <= EMPTY.keys()


SHARES = [
    query.place
    for board in BOARDS
    for query in board.queries
    if query.panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    and query.legend not in {"messages", "canaries"}
]


def test_shares_are_between_nothing_and_everything(observed: Observed) -> None:
    # Percent would be a hundred times as much. Beyond 1, because `rate` extends a sum and a count
    # that have just begun by different parts, and because measured times overlap.
    for place in SHARES:
        for labels, value in observed.answers.get(place, ()):
            assert -0.001 < value < 1.5, (place, labels)


def test_panels_show_no_more_than_a_person_can_read(observed: Observed) -> None:
    for board in BOARDS:
        for query in board.queries:
            if query.panel["type"] != "table":
                assert len(observed.answers.get(query.place, ())) <= MOST_SERIES, query.place


def test_every_dashboard_can_be_drawn(observed: Observed, tmp_path: Path) -> None:
    source = Source(observed.prometheus, time.time() - 30, time.time(), SHORT)
    for board in BOARDS:
        file = tmp_path / f"{board.uid}.png"
        draw(board, source, "A test.", file)
        height, width, _ = imread(file).shape
        assert height > width > 1000


def test_everything_that_alerts_compare_has_data(observed: Observed) -> None:
    assert compared().keys() <= observed.answers.keys()
