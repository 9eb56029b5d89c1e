"""Queries of the dashboards give the right figures for made-up series, as `promtool` has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboards import boards
from tests.support.prometheus import promtool

BOARDS = {board.uid.removeprefix("sqe-hrm-"): board for board in boards()}

MINUTES = 60
"""Series are as long. Figures are of their end, averaged over the last half hour by default."""


class Case:
    """A panel's values for given series.

    Args:
        panel: Dashboard, title and letter, with slashes.
        series: Values a minute by the series, without the project's prefix; a pair of numbers is
            the first value and what is added each minute.
        expected: Values by their labels.
        values: Values of the dashboard's variables, where they are not those at opening.
    """

    def __init__(
        self,
        panel: str,
        series: Mapping[str, float | tuple[float, float]],
        expected: Mapping[str, float],
        **values: str,
    ) -> None:
        self.panel = panel
        self.series = series
        self.expected = expected
        self.values = values

    def test(self) -> dict[str, Any]:
        """As a test for promtool. Values are rounded, since floats are hardly ever equal."""
        uid, title, ref = self.panel.split("/")
        board = BOARDS[uid]
        expr = board.filled(board.query(title, ref), **self.values)
        return {
            "interval": "1m",
            "input_series": [
                {"series": f"sqe_hrm_{name}", "values": _values(value)}
                for name, value in self.series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f"round({expr}, 0.001)",
                    "eval_time": f"{MINUTES}m",
                    "exp_samples": [
                        {"labels": labels, "value": value}
                        for labels, value in self.expected.items()
                    ],
                }
            ],
        }


def _values(value: float | tuple[float, float]) -> str:
    first, step = value if isinstance(value, tuple) else (value, 0)
    return f"{first:g}+{step:g}x{MINUTES}"


def evaluations(
    solved: float, unsolved: float, *, more: str = "", **labels: str
) -> dict[str, tuple[float, float]]:
    """Known live messages that are evaluated each minute."""
    kept = {"job": "w", "lane": "live", "known": "true", "checkpoint": "c", "category": "ci_cd"}
    text = ", ".join(f'{name}="{value}"' for name, value in {**kept, **labels}.items()) + more
    return {
        f'evaluations_total{{{text}, outcome="solved"}}': (0, solved),
        f'evaluations_total{{{text}, outcome="unsolved"}}': (0, unsolved),
    }


def agent(
    solved: float, unsolved: float, instance: str = "m", **labels: str
) -> dict[str, tuple[float, float]]:
    """Known live messages of an agent that are evaluated each minute, as a monitor counts them."""
    kept = {"job": "m", "instance": instance, "agent": "planner", "category": "ci_cd"}
    text = ", ".join(f'{name}="{value}"' for name, value in {**kept, **labels}.items())
    text = f'agent_evaluations_total{{{text}, known="true"'
    return {
        f'{text}, outcome="solved"}}': (0, solved),
        f'{text}, outcome="unsolved"}}': (0, unsolved),
    }


def baseline(low: float, checkpoint: str = "c") -> dict[str, float]:
    """The lower end of a checkpoint's measured rate, as 84 of 84 give 0.956."""
    labels = f'job="w", checkpoint="{checkpoint}", bound="low"'
    return {f"checkpoint_baseline_solved_ratio{{{labels}}}": low}


BELOW, AS_MEASURED, TOO_FEW = 2, 1, 0

VERDICT = "overview/Against its own measurement/A"

WORKER = 'job="w", instance="i", device="cpu", process="0"'


LIVE = 'job="w", checkpoint="c", lane="live"'


def tokens(**counts: float) -> dict[str, tuple[float, float]]:
    return {
        f'tokens_total{{job="w", checkpoint="c", token="{token}"}}': (0, count)
        for token, count in counts.items()
    }


def trained(**shares: float) -> dict[str, float]:
    return {
        f'checkpoint_training_token_ratio{{job="w", checkpoint="c", token="{token}"}}': value
        for token, value in shares.items()
    }


CASES = {
    "17 of 20 are below 84 of 84": Case(
        VERDICT,
        {**evaluations(17 / 30, 3 / 30), **baseline(0.956)},
        {'{checkpoint="c"}': BELOW},
    ),
    "18 of 20 are not": Case(
        VERDICT,
        {**evaluations(18 / 30, 2 / 30), **baseline(0.956)},
        {'{checkpoint="c"}': AS_MEASURED},
    ),
    "all of ten, or none of ten, prove nothing": Case(
        VERDICT,
        {
            **evaluations(0, 10 / 30),
            **baseline(0.956),
            **evaluations(10 / 30, 0, checkpoint="d"),
            **baseline(0.9, "d"),
        },
        {'{checkpoint="c"}': TOO_FEW, '{checkpoint="d"}': TOO_FEW},
    ),
    "a backfill and unknown prompts do not count": Case(
        VERDICT,
        {
            **evaluations(10, 0),
            **evaluations(0, 100, lane="backfill"),
            **evaluations(0, 100, known="false"),
            **baseline(0.956),
        },
        {'{checkpoint="c"}': AS_MEASURED},
    ),
    "a share of less than 20 messages is none": Case(
        "overview/Known messages solved/A", evaluations(0.5, 0.1), {}
    ),
    "the share of all chosen checkpoints together": Case(
        "overview/Known messages solved/A",
        {**evaluations(9, 1), **evaluations(7, 3, checkpoint="d")},
        {"{}": 0.8},
    ),
    "of one chosen checkpoint": Case(
        "overview/Known messages solved/A",
        {**evaluations(9, 1), **evaluations(7, 3, checkpoint="d")},
        {"{}": 0.7},
        checkpoint="d",
    ),
    "and of the chosen jobs": Case(
        "overview/Known messages solved/A",
        {**evaluations(9, 1), **evaluations(7, 3, job="other")},
        {"{}": 0.9},
        job="w|m",
    ),
    "a canary without an outcome is not solved": Case(
        "overview/Canaries solved/A",
        {
            'canary_total{job="m", instance="m", outcome="solved"}': (0, 1),
            'canary_total{job="m", instance="m", outcome="late"}': (0, 1),
            'canary_total{job="m", instance="m", outcome="unknown"}': (0, 1),
        },
        {"{}": 0.5},
    ),
    "one category of two falls": Case(
        "overview/Categories/A",
        {**evaluations(10, 0), **evaluations(1, 9, category="testing")},
        {'{category="ci_cd"}': 0, '{category="testing"}': 0.9},
    ),
    "at least as many are unsolved as the interval says": Case(
        # 1 - the upper end of Wilson's interval of 30 of 300.
        "overview/Categories/B",
        evaluations(1, 9),
        {'{category="ci_cd"}': 0.861},
    ),
    "two monitors that report the same agents count once": Case(
        "overview/Agents/C",
        {**agent(9, 1), **agent(9, 1, "m2")},
        {'{agent="planner"}': 300},
    ),
    "an agent's share is over its categories": Case(
        "overview/Unsolved, by agent/A",
        {**agent(10, 0), **agent(0, 10, category="testing"), **agent(5, 0, agent="coder")},
        {'{agent="planner"}': 0.5, '{agent="coder"}': 0},
    ),
    "99 of 100 are within the objective": Case(
        "overview/Within the objective/A",
        {
            'end_to_end_seconds_bucket{job="w", queue="sqe.evaluate", le="2.0"}': (0, 99),
            'end_to_end_seconds_count{job="w", queue="sqe.evaluate"}': (0, 100),
            'end_to_end_seconds_bucket{job="w", queue="sqe.backfill", le="2.0"}': (0, 0),
            'end_to_end_seconds_count{job="w", queue="sqe.backfill"}': (0, 1000),
        },
        {"{}": 0.99},
    ),
    "patterns add up to the unsolved share": Case(
        "failures/Unsolved, by pattern/A",
        {
            **evaluations(70, 20),
            **evaluations(0, 10, category="testing"),
            f'failures_total{{{LIVE}, known="true", pattern="shifted"}}': (0, 25),
            f'failures_total{{{LIVE}, known="true", pattern="near_miss"}}': (0, 5),
        },
        {'{pattern="shifted"}': 0.25, '{pattern="near_miss"}': 0.05},
    ),
    "the matrix says which agent in which category": Case(
        "failures/Unsolved, by agent and category/A",
        {**agent(10, 0), **agent(0, 10, category="testing"), **agent(5, 0, agent="coder")},
        {
            '{agent="planner", category="ci_cd"}': 0,
            '{agent="planner", category="testing"}': 1,
            '{agent="coder", category="ci_cd"}': 0,
        },
    ),
    "texts that differ, of those that were checked": Case(
        "failures/Solved, but with another text/A",
        {
            f'text_checks_total{{{LIVE}, text="same", solved="true"}}': (0, 90),
            f'text_checks_total{{{LIVE}, text="different", solved="true"}}': (0, 10),
            f'text_checks_total{{{LIVE}, text="unknown", solved="true"}}': (0, 1000),
        },
        {"{}": 0.1},
    ),
    "dead letters are in no other figure, but in the whole": Case(
        "failures/Dead letters/A",
        {**evaluations(9, 0), 'rejected_total{job="w", reason="not_json"}': (0, 1)},
        {"{}": 0.1},
    ),
    "a stream without an entry reaches nowhere": Case(
        "failures/Evidence reaches back/A",
        {
            'stream_oldest_seconds{job="m", stream="failures"}': 90,
            'stream_oldest_seconds{job="m", stream="dead_letters"}': 0,
        },
        {'{stream="failures"}': 90},
    ),
    "tokens as in training have not drifted": Case(
        "failures/Token drift/A",
        {**tokens(test=10, agent=30), **trained(test=0.25, agent=0.75)},
        {'{checkpoint="c"}': 0},
    ),
    "tokens that changed places have, by the root of 1 + 1 / 3": Case(
        "failures/Token drift/A",
        {**tokens(test=30, agent=10), **trained(test=0.25, agent=0.75)},
        {'{checkpoint="c"}': 1.155},
    ),
    "each token has its part in the drift": Case(
        "failures/Token drift, by token/A",
        {**tokens(test=20, agent=20), **trained(test=0.25, agent=0.75)},
        {'{token="test"}': 0.25, '{token="agent"}': 0.083},
    ),
    "of 13,800 tokens chance hardly makes the limit larger than the effect": Case(
        "failures/Token drift/B",
        tokens(test=230, agent=230),
        {'{checkpoint="c"}': 0.316},
    ),
    "what was taken and not settled is in hand": Case(
        "fleet/Unaccounted/A",
        {
            f'taken_total{{{WORKER}, queue="sqe.evaluate"}}': 10,
            f'settled_total{{{WORKER}, queue="sqe.evaluate"}}': 7,
            f'returned_total{{{WORKER}, queue="sqe.evaluate"}}': 2,
            f'in_hand{{{WORKER}, queue="sqe.evaluate"}}': 1,
        },
        {"{}": 0},
    ),
    "one that is lost shows": Case(
        "fleet/Unaccounted/A",
        {
            f'taken_total{{{WORKER}, queue="sqe.evaluate"}}': 10,
            f'settled_total{{{WORKER}, queue="sqe.evaluate"}}': 7,
            f'returned_total{{{WORKER}, queue="sqe.evaluate"}}': 2,
            f'in_hand{{{WORKER}, queue="sqe.evaluate"}}': 0,
        },
        {"{}": 1},
    ),
    "a worker's row has its state and what it is": Case(
        "fleet/Workers/A",
        {
            f"ready{{{WORKER}}}": 1,
            f'state{{{WORKER}, state="serving"}}': 1,
            f'state{{{WORKER}, state="reloading"}}': 0,
            f'engine_info{{{WORKER}, halting="q", dtype="float32"}}': 1,
            f'build_info{{{WORKER}, version="1", python="3.11", torch="2"}}': 1,
        },
        {
            '{instance="i", device="cpu", process="0", state="serving", halting="q", '
            'dtype="float32", version="1", python="3.11", torch="2"}': 1
        },
    ),
    "a checkpoint's row has its digest and its age": Case(
        "fleet/Checkpoints/A",
        {
            f'checkpoint_loaded_timestamp_seconds{{{WORKER}, checkpoint="c"}}': 600,
            f'checkpoint_info{{{WORKER}, checkpoint="c", digest="d"}}': 1,
        },
        {'{instance="i", device="cpu", process="0", checkpoint="c", digest="d"}': 3000},
    ),
    "busy half of the time": Case(
        "fleet/Busy/A",
        {f"engine_busy_seconds_total{{{WORKER}}}": (0, 30)},
        {'{instance="i", device="cpu", process="0"}': 0.5},
        __rate_interval="5m",
    ),
    "a worker unlike the others": Case(
        "fleet/Unlike the others/A",
        {
            **evaluations(10, 0, instance="a", device="", process=""),
            **evaluations(5, 5, instance="b", device="", process=""),
        },
        {'{instance="a"}': 1, '{instance="b"}': 0.5},
    ),
    "Redis without a limit has no share": Case(
        "fleet/Redis memory/A",
        {
            'redis_memory_used_bytes{job="m"}': 100,
            'redis_memory_max_bytes{job="m"}': 0,
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_query_means_what_its_panel_says(name: str, tmp_path: Path) -> None:
    content: dict[str, Sequence[Any]] = {"rule_files": [], "tests": [CASES[name].test()]}
    promtool(tmp_path, "test", content)


def test_now_and_before_compares_with_as_long_ago_as_was_chosen(tmp_path: Path) -> None:
    board = BOARDS["failures"]
    expr = board.filled(board.query("Now and before"), window="10m", before="30m")
    text = 'job="w", checkpoint="c", lane="live", known="true", category="ci_cd"'
    test = {
        "interval": "1m",
        "input_series": [
            {
                "series": f'sqe_hrm_evaluations_total{{{text}, outcome="solved"}}',
                "values": "0+10x45 455+5x15",
            },
            {
                "series": f'sqe_hrm_evaluations_total{{{text}, outcome="unsolved"}}',
                "values": "0+0x45 5+5x15",
            },
        ],
        "promql_expr_test": [
            {
                "expr": f"round({expr}, 0.001)",
                "eval_time": "60m",
                "exp_samples": [{"labels": '{category="ci_cd"}', "value": 0.5}],
            }
        ],
    }
    promtool(tmp_path, "test", {"rule_files": [], "tests": [test]})
