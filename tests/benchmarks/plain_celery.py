"""Celery as its guide sets it up, with a task that does nothing: what the message path is up to."""

import os

from celery import Celery

app = Celery("plain", broker=os.environ.get("SQE_REDIS_URL", "redis://"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

QUEUE = "celery"


@app.task(name="plain.nothing")
def nothing(message: dict[str, object]) -> None:
    """Take a message, and do nothing with it."""
