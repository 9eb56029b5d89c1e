"""Run one worker in this process: health server, evaluator, Celery consumer, and their end.

Knows how the parts are put together and how they stop; each part's rules are its own. Imports no
torch: `read_model` does, after the device was pinned (`worker.process.devices`).
"""

import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import redis
from celery import Celery
from celery.worker import WorkController
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.app import CONNECT_TIMEOUT, SOCKET_TIMEOUT, create_app
from worker.broker.keys import Namespace
from worker.broker.urls import connections
from worker.delivery import vital
from worker.delivery.hand import Hand
from worker.delivery.outcomes import Delivery
from worker.delivery.requirements import Requirements
from worker.delivery.service import Service
from worker.delivery.storing import Storing
from worker.delivery.trouble import Trouble
from worker.delivery.upkeep import Upkeep
from worker.evaluator import Model
from worker.process import devices
from worker.process.notify import Notifier
from worker.process.reload import Reloader, in_short
from worker.process.reload_requests import Listener
from worker.process.remote import Remote
from worker.process.shutdown import Shutdown
from worker.process.swap import Swap
from worker.process.watchdog import Watchdog
from worker.settings import Settings
from worker.telemetry import health
from worker.telemetry.labels import ErrorKind, Request
from worker.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

HEALTH_CHECK_SECONDS = 10
"""Idle time after which a connection is tried before it is used: it may have died meanwhile."""

REMOTE_SECONDS = 2.0
"""Longest time to publish the last events before a worker ends."""

RELOAD_SECONDS = 2.0
"""Longest wait for a checkpoint that is being loaded when the worker ends."""

YOUNG_OBJECTS = 500_000
"""New objects after which Python looks for unreachable cycles; 700 is its default. Messages leave
no cycles, and those in hand are up to 300,000 objects, which took a tenth of the time to look
through, in pauses of 20 ms and more. Cycles that errors leave are found after some 50 MB of them.
"""


def run(
    *,
    redis_url: str,
    settings: Settings,
    device: devices.Device,
    queues: tuple[str, ...],
    read_model: Callable[[str, str | None], Model],
) -> int:
    """Evaluate messages until SIGTERM or SIGINT; returns the exit status.

    Args:
        redis_url: Broker and result backend.
        settings: The operator's settings.
        device: The pinned device.
        queues: Queues to take messages from, the most urgent first.
        read_model: Reads what is served. Its arguments are this worker's name, and a checkpoint's
            name or path, or None for what the worker is set to.

    Raises:
        SQEHRMError: The Redis, the device, the checkpoint or the metrics port cannot be used.
    """
    return _Worker(redis_url, settings, device, queues).run(read_model)


@dataclass(frozen=True)
class _Worker:
    """The parts that every step of a worker needs, and the steps from its start to its end."""

    redis_url: str
    settings: Settings
    device: devices.Device
    queues: tuple[str, ...]
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    metrics: Metrics = field(default_factory=Metrics)
    readiness: health.Readiness = field(default_factory=health.Readiness)

    def run(self, read_model: Callable[[str, str | None], Model]) -> int:
        """Serve metrics and health from the start, load the checkpoint, consume until told to stop.

        Returns the exit status.
        """
        self._check_redis()
        self.metrics.watch_readiness(self.readiness)
        reloader = Reloader(partial(read_model, self.name), self.device, self.metrics)
        # Before the checkpoint is loaded: without a handler, the signal would end the process.
        signal.signal(signal.SIGHUP, reloader.on_signal)
        host, port = self.settings.metrics_host, self.settings.metrics_port
        informed = Notifier.from_env().informed(
            not_ready=self.readiness.not_ready_reason,
            not_alive=self.readiness.not_alive_reason,
            is_stopping=lambda: self.readiness.is_stopping,
        )
        with health.serve(host, port, self.metrics.registry, self.readiness) as url, informed:
            logger.info("serving %s/metrics, /healthz and /readyz", url)
            devices.check(self.device)
            with contextlib.closing(reloader.open()) as evaluator:
                watchdog = Watchdog(lambda: evaluator.engines, self.settings.stall_seconds)
                self.readiness.loaded()
                self.readiness.watch(reloader.failure)
                self.readiness.watch_activity(reloader.activity)
                self._watch(evaluator, watchdog)
                self._log_start(evaluator)
                return self._consume(evaluator, watchdog, reloader)

    @property
    def namespace(self) -> Namespace:
        """The beginning of all names in Redis. Raises `NamespaceError`."""
        return Namespace(self.settings.namespace)

    def _check_redis(self) -> None:
        """Refuse a Redis that is not fit for a worker before anything is started.

        One that is not reachable is checked once it is.
        """
        client = _client(self.redis_url, CONNECT_TIMEOUT)
        with client, contextlib.suppress(redis.RedisError):
            Requirements(self.settings).check(client)

    def _watch(self, evaluator: Swap, watchdog: Watchdog) -> None:
        """Show the evaluator in the metrics, and whether the engine hangs."""
        self.readiness.watch_engine(lambda: watchdog.stalled_seconds, self.settings.stall_seconds)
        self.metrics.watch_engine(
            evaluator,
            memory=partial(devices.memory, self.device),
            stalled_seconds=lambda: watchdog.stalled_seconds,
            cached=self.settings.cached_predictions > 0,
        )

    def _log_start(self, evaluator: Swap) -> None:
        logger.info(
            "checkpoint %s on %s with %d slots, dtype %s, halting %s, cache of %d, queues %s",
            in_short(evaluator.checkpoint),
            self.device.name,
            evaluator.statistics.slots,
            evaluator.dtype,
            evaluator.halting,
            self.settings.cached_predictions,
            ", ".join(self.queues),
        )

    def _consume(self, evaluator: Swap, watchdog: Watchdog, reloader: Reloader) -> int:
        """Take messages until a signal or an error ends it; returns the exit status."""
        # Nothing that was loaded so far becomes garbage, so it is not looked through again.
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        settings = self.settings
        client = _client(self.redis_url, SOCKET_TIMEOUT)
        delivery = Delivery(settings, worker=self.name)
        storing = Storing(
            client,
            delivery.store,
            replicas=settings.wait_replicas,
            on_error=partial(self.metrics.error, ErrorKind.REDIS),
        )
        storing.on_request = partial(self.metrics.redis_request, Request.STORE)
        self.readiness.watch(storing.trouble.reason)
        slots = evaluator.statistics.slots
        hand = Hand(slots)
        self.metrics.watch_hand(hand.flows)

        def give_up() -> None:
            storing.give_up()
            evaluator.close()

        def abandon() -> None:
            service.abandon()

        shutdown = Shutdown(
            settings.shutdown_grace_seconds, self.readiness, hand.close, give_up, abandon
        )
        remote = self._remote(slots)
        service = Service(
            evaluator,
            delivery,
            storing,
            hand,
            self.metrics,
            on_broken=shutdown.on_broken,
            is_broken=lambda: shutdown.is_broken,
            observer=remote,
        )
        listener = Listener(client, self.namespace, self.name, reloader.ask)
        upkeep = Upkeep(client, self.namespace, hand, settings.visibility_timeout)
        upkeep.on_request = self.metrics.redis_request
        upkeep.on_restored = self.metrics.restored
        controller = self._controller(hand, service)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, shutdown.on_signal)
        vital.watch(shutdown.on_stalled)
        for part in (storing, service, upkeep):
            part.start()
        watchdog.start(shutdown.on_stalled)
        if remote is not None:
            remote.start()
        reloader.start(hand, shutdown.on_broken)
        listener.start()
        controller.start()
        listener.stop()
        service.drain()
        storing.stop()
        upkeep.stop(SOCKET_TIMEOUT)
        if remote is not None:
            remote.stop(REMOTE_SECONDS)
        reloader.stop(RELOAD_SECONDS)
        logger.info("stopped")
        shutdown.end()
        return controller.exitcode or shutdown.status

    def _remote(self, slots: int) -> Remote | None:
        """Build what answers Celery's questions, if the operator wants it."""
        if self.settings.celery_events == "off":
            return None
        return Remote(
            create_app(self.redis_url, self.namespace),
            name=self.name,
            queues=self.queues,
            slots=slots,
            settings=self.settings,
        )

    def _controller(self, hand: Hand, service: Service) -> WorkController:
        """Build Celery's worker. It only takes items: what follows has threads of its own."""
        app = create_app("redis://localhost")  # the transport connects by itself
        trouble = Trouble("take messages")
        self.readiness.watch(trouble.reason)

        def on_reply() -> None:
            trouble.passed()
            self.readiness.broker_replied()

        _configure(
            app,
            {
                # Announcements need this version of Redis's protocol.
                "connect": partial(
                    connections,
                    self.redis_url,
                    socket_timeout=SOCKET_TIMEOUT,
                    socket_connect_timeout=CONNECT_TIMEOUT,
                    health_check_interval=HEALTH_CHECK_SECONDS,
                    protocol=3,
                ),
                "namespace": self.namespace,
                "requirements": Requirements(self.settings),
                "trouble": trouble,
                "on_reply": on_reply,
                "on_request": partial(self.metrics.redis_request, Request.TAKE),
                "hand": hand,
                "on_taken": service.take,
                "max_item_bytes": self.settings.max_item_bytes,
            },
        )
        return WorkController(
            app=app,
            hostname=self.name,
            pool_cls="solo",
            concurrency=1,
            queues=list(self.queues),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )


def _configure(app: Celery, transport_options: dict[str, object]) -> None:
    """Add the Celery settings that only a worker needs."""
    app.conf.update(
        broker_transport="worker.delivery.transport:Transport",
        broker_transport_options={
            **transport_options,
            # The queues in their order: live messages overtake a backlog.
            "queue_order_strategy": "priority",
        },
        # Retry without end, at the start and later, and whatever Redis says (a full memory, a
        # replica that became read-only).
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        worker_consumer="worker.delivery.consumer:Consumer",
        # The hand counts messages; Celery counts none.
        worker_enable_prefetch_count_reduction=False,
        # Anyone who can write to Redis must not command the worker.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
    )


def _client(redis_url: str, timeout: float) -> redis.Redis:
    """Build a client that does not retry by itself: each caller has its own rule for that."""
    pool = connections(
        redis_url,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, CONNECT_TIMEOUT),
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis.from_pool(pool)
