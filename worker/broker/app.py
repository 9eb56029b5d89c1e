"""The Celery application that producers and workers share: names, queues, JSON only.

Imports neither torch nor `hrm`. `worker.process.run` adds the settings that only a worker needs.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import ssl

from celery import Celery
from kombu.entity import Exchange, Queue

from worker.broker.contract import (
    CONNECT_TIMEOUT,
    ENQUEUED_AT,
    EVALUATE,
    EVALUATE_BATCH,
    MAX_BATCH,
    SOCKET_TIMEOUT,
    TASKS,
)
from worker.broker.keys import LIVE_QUEUE, QUEUES

__all__ = [
    "CONNECT_TIMEOUT",
    "ENQUEUED_AT",
    "EVALUATE",
    "EVALUATE_BATCH",
    "MAX_BATCH",
    "SOCKET_TIMEOUT",
    "TASKS",
    "create_app",
]


def create_app(redis_url: str) -> Celery:
    """Build the application with `redis_url` as broker and result backend; connects to nothing."""
    app = Celery("sqe-hrm", broker=redis_url, backend=redis_url, set_as_current=False)
    if redis_url.startswith("rediss:"):
        # kombu accepts any certificate by default. Parameters in the URL still take precedence.
        verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        app.conf.update(broker_use_ssl=verified, redis_backend_use_ssl=verified)
    app.conf.update(
        # JSON only: a pickle is code, and anyone who can write to Redis could run it here.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # Without an exchange, kombu does not ask Redis for bindings whenever it sends a message.
        task_queues=[Queue(name, Exchange(""), routing_key=name) for name in QUEUES],
        task_create_missing_queues=False,
        task_default_queue=LIVE_QUEUE,
        task_default_exchange="",
        task_default_routing_key=LIVE_QUEUE,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
        },
    )
    return app
