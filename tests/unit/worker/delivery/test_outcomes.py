"""The fields by which two messages are the same."""

from schemas import SQEMessage
from worker.delivery.outcomes import CONTENT


def test_the_content_of_a_message_is_everything_that_a_verdict_follows_from() -> None:
    other = {"schema_version", "message_id", "created_at", "tags"}
    assert set(SQEMessage.model_fields) - other == CONTENT
