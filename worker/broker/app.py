"""The Celery application that producers and workers share: names, queues, JSON only.

Light: imports neither torch nor `hrm`. What only a worker needs is added in `worker.process.run`.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import ssl

from celery import Celery
from kombu.entity import Exchange, Queue

from worker.broker.keys import LIVE_QUEUE, QUEUES

EVALUATE = "sqe.evaluate"
"""Task: one message, one outcome."""

EVALUATE_BATCH = "sqe.evaluate_batch"
"""Task: a list of up to `MAX_BATCH` messages, one outcome each, in order."""

TASKS = (EVALUATE, EVALUATE_BATCH)

MAX_BATCH = 256
"""Messages of a batch: enough that the broker's work per message no longer shows, few enough that
a batch is never more than a few megabytes or long in one worker's hands."""

ENQUEUED_AT = "sqe_enqueued_at"
"""Task header: when the client enqueued it, in Unix seconds. Any other value counts as absent."""

CONNECT_TIMEOUT = 5.0
"""Seconds: a Redis that is there accepts within milliseconds, also across regions."""

SOCKET_TIMEOUT = 10.0
"""Seconds for any reply: a Redis that pauses longer (a fork, a failover) is better called again."""


def create_app(redis_url: str) -> Celery:
    """The application on that Redis (broker and result backend). Connects to nothing."""
    app = Celery("sqe-hrm", broker=redis_url, backend=redis_url, set_as_current=False)
    if redis_url.startswith("rediss:"):
        # kombu's own default believes any certificate; parameters of the URL still win.
        verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        app.conf.update(broker_use_ssl=verified, redis_backend_use_ssl=verified)
    app.conf.update(
        # JSON only: a pickle is code, and whoever can write to Redis would run it here.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # Without an exchange: kombu then asks Redis for no bindings when a message is sent.
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
