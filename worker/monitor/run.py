"""Run the monitor in this process: its pages, the reading of Redis, the canaries, and their end.

Knows how the parts are put together; each part's rules are its own.
"""

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.keys import Namespace
from worker.broker.urls import connections
from worker.client import Client
from worker.monitor.canary import Canary, Question
from worker.monitor.figures import Figures
from worker.monitor.reading import Reader
from worker.settings import Settings
from worker.telemetry import health
from worker.telemetry.latest import OLDEST_SECONDS, Latest

logger = logging.getLogger(__name__)

READ_TIMEOUT = 5.0
"""Seconds for a reading. A longer pause of Redis is tried again; two readings lost in a row show as
`redis_up` 0."""


class Pulse(health.Readiness):
    """The monitor is alive as long as it answers, and ready while Redis answers.

    Args:
        latest: Returns the latest reading of Redis, or None.
    """

    def __init__(self, latest: Callable[[], object]) -> None:
        super().__init__()
        self._latest = latest

    def not_ready_reason(self) -> str | None:
        """Say why the monitor is not ready; None if it is."""
        if self._latest() is None:
            return f"no reply from Redis for {OLDEST_SECONDS:g} s"
        return None


def run(*, redis_url: str, settings: Settings, canaries: Sequence[Question]) -> int:
    """Serve the metrics until SIGTERM or SIGINT; returns the exit status.

    Args:
        redis_url: The workers' Redis, which may be away.
        settings: The operator's settings.
        canaries: Messages to send with a known answer; none to send none.

    Raises:
        SQEHRMError: The namespace or the port cannot be used.
    """
    namespace = Namespace(settings.namespace)
    pool = connections(
        redis_url,
        socket_timeout=READ_TIMEOUT,
        socket_connect_timeout=READ_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with redis.Redis.from_pool(pool) as store, Client(redis_url, namespace.name) as client:
        latest = Latest(Reader(store, namespace))
        latest.start()
        figures = Figures(latest)
        host, port = settings.metrics_host, settings.monitor_port
        with health.serve(host, port, figures.registry, Pulse(latest)) as url:
            logger.info("serving %s/metrics, /healthz and /readyz", url)
            if canaries and settings.canary_seconds:
                Canary(
                    client,
                    store,
                    namespace,
                    canaries,
                    seconds=settings.canary_seconds,
                    note=figures.canary,
                ).start()
            stopping.wait()
    logger.info("stopped")
    return 0
