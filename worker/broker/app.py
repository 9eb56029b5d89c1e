"""The Celery application that producers and workers share: names, queues, JSON only.

Imports neither torch nor `hrm`. `worker.process.run` adds the settings that only a worker needs.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import ssl
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu.entity import Exchange, Queue
from redis.sentinel import SentinelConnectionPool

from worker.broker.contract import (
    CONNECT_TIMEOUT,
    ENQUEUED_AT,
    EVALUATE,
    EVALUATE_BATCH,
    MAX_BATCH,
    SOCKET_TIMEOUT,
    TASKS,
)
from worker.broker.keys import LIVE_QUEUE, NO_NAMESPACE, QUEUES, Namespace
from worker.broker.urls import connections

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


def create_app(redis_url: str, namespace: Namespace = NO_NAMESPACE) -> Celery:
    """Build the application with `redis_url` as broker and result backend; connects to nothing.

    Raises `RedisURLError`.
    """
    url, options = _of_celery(redis_url)
    if namespace.prefix:
        options["global_keyprefix"] = namespace.prefix
    app = Celery("sqe-hrm", broker=url, backend=url, set_as_current=False)
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
            **options,
        },
        result_backend_transport_options=options,
    )
    return app


def _of_celery(redis_url: str) -> tuple[str, dict[str, Any]]:
    """Translate the URL into Celery's form, with the options of a transport that belong to it."""
    pool = connections(redis_url)
    given = pool.connection_kwargs
    user, password = (quote(given.get(name) or "", safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if user or password else ""
    database = given.get("db") or 0
    if isinstance(pool, SentinelConnectionPool):
        asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        urls = [f"sentinel://{login}{each['host']}:{each['port']}/{database}" for each in asked]
        names = ("username", "password", "socket_timeout", "socket_connect_timeout")
        return ";".join(urls), {
            "master_name": pool.service_name,
            "sentinel_kwargs": {name: asked[0].get(name) for name in names},
        }
    if redis_url.startswith("unix:"):
        return f"redis+socket://{login}{given['path']}?virtual_host={database}", {}
    return redis_url, {}
