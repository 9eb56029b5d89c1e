"""Celery's view of a task that a worker refused."""

import json

from celery.result import AsyncResult


def refusal(task: AsyncResult) -> tuple[str, str]:
    """The reason and the detail of a task that failed."""
    task.get(timeout=30, propagate=False)
    assert task.state == "FAILURE"
    stored = task.backend.get(task.backend.get_key_for_task(task.id))
    result = json.loads(stored)["result"]
    return result["reason"], result["detail"]
