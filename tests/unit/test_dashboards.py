"""The dashboards are what the builders write, and ask only for what exists.

What their queries mean is shown by `promtool` on made-up series, as the alerts' meaning is.
`tests/integration/test_dashboards.py` asks them of a real Prometheus.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.__main__ import contents
from deploy.grafana.builders.board import UID_OF
from deploy.grafana.builders.overview import OBJECTIVE_SECONDS
from schemas import Category, TextCheck
from tests.support.dashboards import FOLDER, VARIABLE, Board, Query, boards, selectors
from tests.support.prometheus import promtool
from tests.unit import test_deploy
from worker.broker.backlog import READY, UNACKED
from worker.broker.keys import QUEUES
from worker.monitor.figures import CanaryOutcome
from worker.telemetry.families import LONG_SECONDS
from worker.telemetry.labels import BOOLEANS, BOUNDS, OUTCOMES, Lane

BOARDS = boards()
QUERIES = [query for board in BOARDS for query in board.queries]
EXPRESSIONS = {place: expr for board in BOARDS for place, expr in board.every_expression.items()}

exposed = test_deploy.exposed

OF_PROMETHEUS = {
    "instance",
    "job",
    "le",
    "device",
    "process",
    "alertname",
    "alertstate",
    "severity",
}
"""Labels that Prometheus, its alerts, or the process above several workers add."""

OBEYED = ("checkpoint", "lane", "known", "agent", "category", "instance", "device")
"""Variables of a label's values, which have that label's name."""

OF_THE_MONITOR = (
    "sqe_hrm_queue_messages",
    "sqe_hrm_queue_oldest",
    "sqe_hrm_unacked",
    "sqe_hrm_stream",
    "sqe_hrm_redis_up",
    "sqe_hrm_redis_memory",
    "sqe_hrm_agent",
    "sqe_hrm_canary",
    "sqe_hrm_failures_left_out",
)
"""Beginnings of metrics that no worker has."""

DISOBEDIENT = {
    "Dead letters / A": ({"checkpoint", "lane", "known", "category"}, "nobody knows these of them"),
    "Unsolved, by pattern / A": ({"category"}, "failures are not counted by category"),
    "Prompts / B": ({"known", "category"}, "it is the share of unknown prompts"),
    "Cut short / A": ({"checkpoint", "known", "category"}, "long messages are counted by lane"),
    "Not read / A": ({"checkpoint", "known", "category"}, "long messages are counted by lane"),
    "The Q head / B": ({"checkpoint", "known", "category"}, "right answers are counted by lane"),
}
"""Variables that a panel of the failures does not obey, although its metric has the label: the
whole that a share is of has to be of the same messages as the part, which lacks the label."""

LEFT_OUT: dict[str, str] = {}
"""Metrics that no panel shows, and why."""


def ids(query: Query) -> str:
    return query.place


def test_the_files_are_what_the_builders_write() -> None:
    written = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert written == contents(), "run `python -m deploy.grafana`"


def test_there_are_three_dashboards() -> None:
    assert {board.uid for board in BOARDS} == set(UID_OF.values())
    assert {board.file for board in BOARDS} == {f"{board.uid}.json" for board in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
class TestEveryDashboard:
    def test_its_panels_have_their_own_ids(self, board: Board) -> None:
        ids = [panel["id"] for panel in board.json["panels"]]
        assert len(ids) == len(set(ids))

    def test_its_panels_fill_the_lines_and_do_not_overlap(self, board: Board) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in board.json["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells
        height = max(y for _, y in taken) + 1
        assert taken == {(x, y) for x in range(24) for y in range(height)}

    def test_the_data_source_is_a_variable_that_everything_uses(self, board: Board) -> None:
        first, *_ = board.json["templating"]["list"]
        assert (first["name"], first["type"], first["query"]) == (
            "datasource",
            "datasource",
            "prometheus",
        )
        asked = [
            each["datasource"]
            for each in (
                *(panel for panel in board.panels if panel["type"] != "text"),
                *(target for panel in board.panels for target in panel.get("targets", ())),
                *(each for each in board.variables.values() if each["type"] == "query"),
                *board.json["annotations"]["list"],
            )
        ]
        assert {(each["type"], each["uid"]) for each in asked} == {("prometheus", "${datasource}")}

    def test_every_variable_is_used_and_every_used_one_exists(self, board: Board) -> None:
        texts = [panel["options"]["content"] for panel in board.panels if panel["type"] == "text"]
        links = [link["url"] for link in _links(board)]
        used = {
            first or second
            for text in (*board.every_expression.values(), *texts, *links, "${datasource}")
            for first, second in VARIABLE.findall(text)
        }
        own = {name for name in used if not name.startswith("__")} - JQ
        assert own == board.variables.keys()

    def test_choices_are_all_values_at_first(self, board: Board) -> None:
        for variable in board.variables.values():
            if variable["type"] == "query":
                assert variable["multi"]
                assert variable["includeAll"]
                assert variable["current"]["value"] == ["$__all"]
                assert variable["refresh"] == 2, "when the time range changes"

    def test_loads_and_alerts_are_marked(self, board: Board) -> None:
        loads, alerts = board.json["annotations"]["list"]
        assert "sqe_hrm_checkpoint_loaded_timestamp_seconds" in loads["expr"]
        assert loads["expr"].endswith(" * 1000"), "Grafana's times are in milliseconds"
        assert loads["useValueForTime"]
        assert alerts["expr"].startswith("ALERTS{")

    def test_it_links_to_the_others_and_keeps_time_and_variables(self, board: Board) -> None:
        (link,) = board.json["links"]
        assert set(link["tags"]) <= set(board.json["tags"])
        assert link["type"] == "dashboards"
        assert link["keepTime"]
        assert link["includeVars"]

    def test_its_links_lead_to_dashboards_and_variables_that_exist(self, board: Board) -> None:
        of_uid = {each.uid: each for each in BOARDS}
        for link in _links(board):
            match = re.match(r"/d/([\w-]+)\?\$\{__url_time_range\}&(.*)", link["url"])
            assert match is not None, link["url"]
            there = of_uid[match[1]].variables
            assert set(re.findall(r"\bvar-(\w+)=", match[2])) <= there.keys()
            kept = set(re.findall(r"\$\{(\w+):queryparam\}", match[2]))
            assert kept == {"datasource", "job"} <= there.keys() & board.variables.keys()


JQ = {"f"}
"""Variables of jq, in the commands that a panel shows."""


def _links(board: Board) -> list[dict[str, Any]]:
    return [
        link
        for panel in board.panels
        if "fieldConfig" in panel
        for link in panel["fieldConfig"]["defaults"].get("links", ())
    ]


PANELS = [
    pytest.param(panel, id=f"{board.uid} / {panel['title']}")
    for board in BOARDS
    for panel in board.panels
    if panel["type"] != "text"
]


@pytest.mark.parametrize("panel", PANELS)
class TestEveryPanel:
    def test_it_says_what_it_is_for_and_what_an_empty_one_means(
        self, panel: dict[str, Any]
    ) -> None:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["noValue"]

    def test_it_has_a_unit_and_queries_with_letters_of_their_own(
        self, panel: dict[str, Any]
    ) -> None:
        assert panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(letters) == len(set(letters))
        assert all(target["legendFormat"] for target in panel["targets"])

    def test_a_figure_of_this_moment_is_asked_for_this_moment(self, panel: dict[str, Any]) -> None:
        """The last value of a range would go on showing what was, once messages stop."""
        instant = panel["type"] in {"stat", "bargauge", "table"}
        for target in panel["targets"]:
            assert (target["instant"], target["range"]) == (instant, not instant)

    def test_a_stat_has_thresholds(self, panel: dict[str, Any]) -> None:
        if panel["type"] == "stat":
            (first, *others) = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert first["value"] is None
            assert others
            values = [step["value"] for step in others]
            assert values == sorted(values)


def test_a_share_of_few_messages_says_so() -> None:
    for board, title in (("overview", "Known messages solved"), ("failures", "Unsolved")):
        query, number = (
            each for each in QUERIES if each.place.startswith(f"sqe-hrm-{board} / {title} / ")
        )
        assert query.expr.endswith(" >= 20)")
        assert query.panel["fieldConfig"]["defaults"]["noValue"] == "too few to tell"
        assert number.legend == "messages"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_query_is_of_the_chosen_jobs(board: Board) -> None:
    for place, expr in board.every_expression.items():
        for metric, matchers in selectors(expr):
            if metric in {"ALERTS", ""} or place.endswith("$job"):
                assert "job" not in matchers, place
            else:
                assert matchers["job"] == "=~$job", place
        # No metric stands without a selector.
        assert not re.findall(r"\bsqe_hrm_\w+(?![\w{(|])", expr), place


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_panel_obeys_the_variables_that_apply(
    board: Board, exposed: dict[str, set[str]]
) -> None:
    free: dict[str, set[str]] = {}
    for query in board.queries:
        for metric, matchers in selectors(query.expr):
            labels = exposed.get(metric, {"instance", "device"})
            for variable in set(OBEYED) & board.variables.keys():
                applies = variable in labels or (
                    variable in {"instance", "device"} and not metric.startswith(OF_THE_MONITOR)
                )
                if applies and variable not in matchers:
                    free.setdefault(query.place, set()).add(variable)
                if applies and matchers.get(variable, "=").startswith("=~"):
                    assert matchers[variable] == f"=~${variable}", query.place
    expected = {f"sqe-hrm-failures / {name}": given for name, (given, _) in DISOBEDIENT.items()}
    assert free == (expected if board.uid == "sqe-hrm-failures" else {})


def test_queries_ask_for_metrics_and_labels_that_exist(exposed: dict[str, set[str]]) -> None:
    every = set().union(*exposed.values(), OF_PROMETHEUS)
    for place, expr in EXPRESSIONS.items():
        for metric, matchers in selectors(expr):
            if metric and not metric.startswith(("ALERTS", "process_")):
                assert metric in exposed, place
                assert matchers.keys() <= exposed[metric] | OF_PROMETHEUS, place
        for labels in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expr):
            assert set(filter(None, re.split(r",\s*", labels))) <= every, place
    for query in QUERIES:
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= every, query.place


def test_queries_ask_for_label_values_that_exist() -> None:
    values: dict[str, set[str]] = {
        "queue": set(QUEUES),
        "state": {READY, UNACKED, "busy", "free"},
        "lane": set(Lane),
        "known": set(BOOLEANS),
        "solved": set(BOOLEANS),
        "outcome": {*OUTCOMES, *CanaryOutcome},
        "bound": set(BOUNDS),
        "text": set(TextCheck),
        "result": {"hit", "miss"},
        "category": set(Category),
        "le": {str(float(limit)) for limit in LONG_SECONDS},
        "alertstate": {"firing"},
    }
    for place, expr in EXPRESSIONS.items():
        for _, matchers in selectors(expr):
            for label, matcher in matchers.items():
                text = matcher.lstrip("=!~")
                if not text.startswith("$") and label not in {"alertname", "__name__"}:
                    assert set(text.split("|")) <= values[label], place


def test_the_objective_is_a_limit_of_a_bucket() -> None:
    assert OBJECTIVE_SECONDS in LONG_SECONDS


def test_every_metric_is_on_a_panel_or_left_out_on_purpose(exposed: dict[str, set[str]]) -> None:
    shown = {metric for query in QUERIES for metric, _ in selectors(query.expr)}
    families = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if name.startswith("sqe_hrm_")
    }
    missing = families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {name.removeprefix("sqe_hrm_") for name in missing} == LEFT_OUT.keys()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_promtool_reads_every_expression(board: Board, tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{place}", "expr": board.filled(expr)}
        for place, expr in enumerate(board.every_expression.values())
    ]
    promtool(tmp_path, "check", {"groups": [{"name": board.uid, "rules": rules}]})
