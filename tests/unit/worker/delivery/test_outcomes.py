"""The content by which two messages are the same."""

from typing import Any

import pytest

from schemas import Category, SQEMessage
from worker.delivery.outcomes import content_of

MESSAGE = SQEMessage.create(agent_id="planner", prompt="ab", completion="c")

OTHER: dict[str, Any] = {
    "agent_id": "other",
    "prompt": "a",
    "completion": "d",
    "puzzle_id": 0,
    "task": "None",
    "category": Category.TEST_PLANNING,
}
"""Another value for each field that a verdict follows from."""


@pytest.mark.parametrize("field", OTHER)
def test_other_content_is_another_message(field: str) -> None:
    other = MESSAGE.model_copy(update={field: OTHER[field]})
    assert content_of(other) != content_of(MESSAGE)


def test_a_word_that_moves_from_the_prompt_to_the_completion_is_other_content() -> None:
    moved = MESSAGE.model_copy(update={"prompt": "a", "completion": "bc"})
    assert content_of(moved) != content_of(MESSAGE)


def test_a_resent_message_has_the_same_content() -> None:
    resent = SQEMessage.create(agent_id="planner", prompt="ab", completion="c", tags={"run": "2"})
    assert content_of(resent) == content_of(MESSAGE)


def test_the_content_of_a_message_is_everything_that_a_verdict_follows_from() -> None:
    other = {"schema_version", "message_id", "created_at", "tags"}
    assert set(SQEMessage.model_fields) - other == set(OTHER)
