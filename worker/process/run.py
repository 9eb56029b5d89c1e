"""Runs one worker in this process: health server, evaluator, Celery consumer, and their end.

Knows how the parts are put together and how they stop; each part's rules are its own. The device
has to be pinned (`worker.process.devices`) before this module is imported, since it imports torch.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import redis
from celery import Celery
from celery.worker import WorkController
from celery.worker import state as celery_state
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.app import CONNECT_TIMEOUT, SOCKET_TIMEOUT, create_app
from worker.broker.backlog import read_backlog
from worker.delivery.outcomes import Delivery
from worker.delivery.service import Service
from worker.delivery.tasks import register_tasks
from worker.evaluator import Evaluator
from worker.process import devices
from worker.settings import Settings
from worker.telemetry import health
from worker.telemetry.metrics import ErrorKind, Metrics

logger = logging.getLogger(__name__)

SCRAPE_TIMEOUT = 1.0
"""Seconds for the queues' lengths: a scrape has ten, and without Redis it must not wait long."""

RESTORE_SECONDS = 10.0
"""Between two looks at the messages of dead workers, at most."""

MUTEX_SECONDS = 30
"""A worker killed while it looks keeps others from it for so long."""

BROKEN = 1
"""Exit status of a worker that cannot evaluate any more."""


class Shutdown:
    """The end of a worker: stops taking messages at once, and what is under way after the grace.

    `give_up` is called when the grace period is over; messages then go back to their queues.
    """

    def __init__(
        self, grace_seconds: float, readiness: health.Readiness, give_up: Callable[[], None]
    ) -> None:
        self._readiness = readiness
        self._give_up = give_up
        self._timer = threading.Timer(grace_seconds, self._expire)
        self._timer.daemon = True
        self._grace_seconds = grace_seconds
        self._begun = threading.Lock()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Begin; a second signal changes nothing."""
        self.begin(f"received {signal.Signals(number).name}", os.EX_OK)

    def begin(self, reason: str, status: int) -> None:
        """Stop taking messages, finish what is under way, exit with `status`."""
        if not self._begun.acquire(blocking=False):
            return
        logger.info("%s: finishing, for at most %g s", reason, self._grace_seconds)
        self._readiness.stopping()
        celery_state.should_stop = status
        self._timer.start()

    def end(self) -> None:
        """All is done; the grace period no longer matters."""
        self._timer.cancel()

    def _expire(self) -> None:
        logger.warning("the grace period is over: unfinished messages go back to their queues")
        self._give_up()


def run(
    *,
    redis_url: str,
    settings: Settings,
    device: devices.Device,
    queues: tuple[str, ...],
    open_evaluator: Callable[[str], Evaluator],
) -> int:
    """Evaluate messages until SIGTERM or SIGINT; returns the exit status.

    `open_evaluator` loads the checkpoint, given this worker's name. Raises `SQEHRMError` when the
    device, the checkpoint or the port cannot be used.
    """
    worker = f"{socket.gethostname()}:{os.getpid()}"
    metrics = Metrics()
    readiness = health.Readiness()
    serving = health.serve(
        settings.metrics_host, settings.metrics_port, metrics.registry, readiness
    )
    with serving as url:
        logger.info("serving %s/metrics, /healthz and /readyz", url)
        devices.check(device)
        evaluator = open_evaluator(worker)
        readiness.loaded()
        metrics.watch_engine(
            evaluator,
            memory=partial(devices.memory, device),
            cached=settings.cached_predictions > 0,
        )
        metrics.watch_queues(partial(read_backlog, _client(redis_url, SCRAPE_TIMEOUT)))
        try:
            logger.info(
                "checkpoint %s (%s) on %s with %d slots, dtype %s, halting %s, cache of %d, "
                "queues %s",
                evaluator.checkpoint_name,
                evaluator.checkpoint_digest[:12],
                device.name,
                evaluator.statistics.slots,
                evaluator.dtype,
                evaluator.halting,
                settings.cached_predictions,
                ", ".join(queues),
            )
            return _consume(redis_url, settings, queues, worker, evaluator, metrics, readiness)
        finally:
            evaluator.close()


def _consume(
    redis_url: str,
    settings: Settings,
    queues: tuple[str, ...],
    worker: str,
    evaluator: Evaluator,
    metrics: Metrics,
    readiness: health.Readiness,
) -> int:
    delivery = Delivery(
        _client(redis_url, SOCKET_TIMEOUT),
        settings,
        worker=worker,
        on_error=partial(metrics.error, ErrorKind.REDIS),
    )

    def give_up() -> None:
        delivery.give_up()
        evaluator.close()

    shutdown = Shutdown(settings.shutdown_grace_seconds, readiness, give_up)

    def on_broken(reason: str) -> None:
        logger.error("this worker cannot go on: %s", reason)
        shutdown.begin("broken", BROKEN)

    service = Service(evaluator, delivery, metrics, on_broken=on_broken)
    app = create_app(redis_url)
    register_tasks(app, service)
    _configure(app, settings, service, readiness)
    app.set_default()  # for the pool's threads
    controller = WorkController(
        app=app,
        hostname=worker,
        pool_cls="threads",
        concurrency=evaluator.statistics.slots,
        queues=list(queues),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, shutdown.on_signal)
    controller.start()
    shutdown.end()
    logger.info("stopped")
    return controller.exitcode or os.EX_OK


def _configure(
    app: Celery, settings: Settings, service: Service, readiness: health.Readiness
) -> None:
    """What only a worker needs of Celery's settings."""
    options: dict[str, Any] = {
        "visibility_timeout": settings.visibility_timeout,
        "unacked_restore_interval": min(RESTORE_SECONDS, settings.visibility_timeout / 2),
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": MUTEX_SECONDS,
        # The queues in their order: live messages overtake a backlog.
        "queue_order_strategy": "priority",
        "on_reply": readiness.broker_replied,
        "on_refused": service.refuse,
    }
    app.conf.update(
        broker_transport="worker.delivery.transport:Transport",
        broker_transport_options={**app.conf.broker_transport_options, **options},
        # For as long as it takes, at the start as later, and for whatever Redis says (a full
        # memory, a replica that became read-only).
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        worker_consumer="worker.delivery.consumer:Consumer",
        # As many messages in hand as slots: the rest is for other workers.
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        # Threads cannot be ended; a message that is evaluated twice is counted once.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Whoever can write to Redis must not command the worker.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
    )


def _client(redis_url: str, timeout: float) -> redis.Redis:
    """A client that does not try again by itself: who uses it knows better whether to."""
    return redis.Redis.from_url(
        redis_url,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, CONNECT_TIMEOUT),
        socket_keepalive=True,
        health_check_interval=10,  # s: finds a connection that died while idle before it is used
        retry=Retry(NoBackoff(), 0),
    )
