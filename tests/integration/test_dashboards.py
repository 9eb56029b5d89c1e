"""Every query of every panel, variable and alert has data, once a real Prometheus has scraped a
real deployment to which agents sent messages of every kind."""

import math
import re
import time
from collections.abc import Iterator, Mapping

import pytest

from tests.support.dashboards import Board, boards
from tests.support.deployment import Deployment, deployment
from tests.support.prometheus import Sample, shipped_rules

BOARDS = boards()

SHORT = {
    "window": "20s",
    "before": "5s",
    "__rate_interval": "20s",
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
"""What may have no data in this run, and why."""

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


def finite(samples: list[Sample]) -> list[Sample]:
    return [(labels, value) for labels, value in samples if math.isfinite(value)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that got messages of every kind, until every query had an answer."""
    folder = tmp_path_factory.mktemp("observed")
    with deployment(folder, scrape_seconds=1, canary_seconds=1) as running:
        waiting = EXPRESSIONS.keys() - EMPTY.keys()
        end = time.monotonic() + DEADLINE
        while waiting and time.monotonic() < end:
            send_everything(running)
            waiting = {
                place
                for place in waiting
                if not finite(running.prometheus.instant(EXPRESSIONS[place]))
            }
        yield running


def send_everything(running: Deployment) -> None:
    agents = running.agents
    agents.answer(*agents.known("planner", 40), *agents.known("coder", 20))
    agents.answer(*agents.drifting("tester", 20), *agents.unseen("coder", 5))
    agents.answer(*agents.unknown("planner", 4))
    agents.wait(agents.backfill(50) + agents.malformed(2))
    agents.twice("coder")


@pytest.fixture(scope="module")
def answers(observed: Deployment) -> Mapping[str, list[Sample]]:
    """What Prometheus answers to everything that the dashboards ask."""
    return {place: finite(observed.prometheus.instant(EXPRESSIONS[place])) for place in EXPRESSIONS}


def test_what_may_be_empty_exists() -> None:
    assert EMPTY.keys() <= EXPRESSIONS.keys()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_everything_that_a_dashboard_asks_has_data(
    board: Board, answers: Mapping[str, list[Sample]]
) -> None:
    assert {place for place in asked(board) if not answers[place]} <= EMPTY.keys()


SHARES = [
    query.place
    for board in BOARDS
    for query in board.queries
    if query.panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    and query.legend not in {"messages", "canaries"}
]


def test_shares_are_between_nothing_and_everything(answers: Mapping[str, list[Sample]]) -> None:
    for place in SHARES:
        for labels, value in answers[place]:
            assert -0.001 < value < 1.05, (place, labels)  # times are measured, and steps overlap


def test_panels_show_no_more_than_a_person_can_read(answers: Mapping[str, list[Sample]]) -> None:
    for board in BOARDS:
        for query in board.queries:
            if query.panel["type"] != "table":
                assert len(answers[query.place]) <= MOST_SERIES, query.place


def test_everything_that_alerts_compare_has_data(answers: Mapping[str, list[Sample]]) -> None:
    assert {series for series in compared() if not answers[series]} == set()
