"""The Celery application that producers and workers share: names, queues, JSON only.

Imports neither torch nor `hrm`. `worker.process.run` adds the settings that only a worker needs.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import ssl

from celery import Celery
from kombu.entity import Exchange, Queue

from worker.broker.keys import LIVE_QUEUE, QUEUES

EVALUATE = "sqe.evaluate"
"""Task that evaluates one message."""

EVALUATE_BATCH = "sqe.evaluate_batch"
"""Task that evaluates a list of up to `MAX_BATCH` messages: one outcome each, in order."""

TASKS = (EVALUATE, EVALUATE_BATCH)

MAX_BATCH = 256
"""Largest number of messages in a batch. At this size the broker's work per message no longer
matters; a larger batch could exceed a few megabytes and occupy one worker for long."""

ENQUEUED_AT = "sqe_enqueued_at"
"""Task header with the time of enqueueing in Unix seconds. Any other value counts as absent."""

CONNECT_TIMEOUT = 5.0
"""Seconds to connect. A running Redis accepts within milliseconds, also across regions."""

SOCKET_TIMEOUT = 10.0
"""Seconds for any reply. After a longer pause (a fork, a failover) it is better to reconnect."""


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
