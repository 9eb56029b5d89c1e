"""The JSON text of verdicts that are equal but for ids and times."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from schemas import Category, Timings, Verdict, VerdictText
from tests.support.stubs import message, verdict

SOLVED, UNSOLVED = verdict(message("solve")), verdict(message("fail"))

OWN: list[dict[str, Any]] = [
    {},
    {"message_id": 'a "quoted" \\ id', "agent_id": "naïve\n\u2028\x7f \U0001f600"},
    {"message_id": ',"device":"x","timings":{}', "agent_id": '},"evaluated_at":'},
    {"timings": Timings(queue=None, convert=3.8397e-05, inference=1e-9, total=1e22)},
    {"timings": Timings(queue=0, convert=0.1 + 0.2, inference=123456.789, total=5e-324)},
    {"evaluated_at": datetime(2026, 12, 1, 8, 30, tzinfo=UTC)},
    {"evaluated_at": datetime(2026, 12, 1, 8, 30, 0, 1, tzinfo=timezone(timedelta(hours=-3)))},
]
"""Ids and times of a message."""

RESULTS: list[dict[str, Any]] = [
    {},
    {"checkpoint": ',"device":', "device": '"},{"', "worker": "}{ü\\"},
    {"dtype": None, "truncated": None, "unread_words": None, "category": Category.OTHER},
    {"predicted_sequence": (), "q_halt": -0.0, "q_continue": float("inf"), "token_accuracy": 1},
]
"""What verdicts have in common."""


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("results", RESULTS)
@pytest.mark.parametrize("of", [SOLVED, UNSOLVED], ids=["solved", "unsolved"])
def test_a_text_is_the_one_that_pydantic_writes(
    of: Verdict, results: dict[str, Any], own: dict[str, Any]
) -> None:
    first = Verdict.model_validate(of.model_copy(update=results).model_dump())
    other = first.model_copy(update=own)
    assert VerdictText(first)(other) == other.model_dump_json()
    assert VerdictText(other)(first) == first.model_dump_json()
