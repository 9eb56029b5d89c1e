"""The worker's pages: /metrics, /healthz and /readyz.

Knows whether this process is alive and takes messages; nothing of the figures, which are
`worker.telemetry.metrics`'s, nor of HTTP, which is `worker.telemetry.server`'s.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from schemas import SQEHRMError
from worker.telemetry.labels import State
from worker.telemetry.server import Answer, Page, serving

FRESH_SECONDS = 5.0
"""Longest time without a reply from Redis. An idle worker gets one twice a second and a busy one
every second, so after five seconds the worker is cut off or stuck."""


class HealthError(SQEHRMError):
    """The server cannot listen on its address."""


class Readiness:
    """Whether this worker is alive and takes messages. Threads share one."""

    def __init__(self) -> None:
        self._stalled_seconds: Callable[[], float] = lambda: 0.0
        self._stall_limit = float("inf")
        self._loaded = False
        self._stopping = False
        self._last_reply = float("-inf")
        self._troubles: list[Callable[[], str | None]] = []
        self._activity: Callable[[], State] = lambda: State.SERVING

    def watch(self, trouble: Callable[[], str | None]) -> None:
        """Ask `trouble` as well; it returns why the worker is not ready, or None."""
        self._troubles.append(trouble)

    def loaded(self) -> None:
        """Note that the checkpoint is loaded."""
        self._loaded = True

    def watch_activity(self, activity: Callable[[], State]) -> None:
        """Ask `activity` what the worker does from now on, unless it starts or stops."""
        self._activity = activity

    def watch_engine(self, stalled_seconds: Callable[[], float], limit: float) -> None:
        """Look from now on whether the engine hangs.

        Args:
            stalled_seconds: Returns the time since the engine made progress.
            limit: Seconds after which the worker is not alive any more. It is not ready after half
                of them.
        """
        self._stalled_seconds, self._stall_limit = stalled_seconds, limit

    def stopping(self) -> None:
        """Note that the worker takes no more messages."""
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        """Whether the worker takes no more messages."""
        return self._stopping

    @property
    def state(self) -> State:
        """The worker's state at this moment."""
        if self._stopping:
            return State.STOPPING
        return self._activity() if self._loaded else State.STARTING

    def broker_replied(self) -> None:
        """Note that Redis answered a request for messages."""
        self._last_reply = time.monotonic()

    def not_alive_reason(self) -> str | None:
        """Say why this worker has to be restarted; None if it is alive."""
        return self._stall_reason(self._stall_limit)

    def not_ready_reason(self) -> str | None:
        """Say why this worker is not ready; None if it is."""
        stalled = self._stall_reason(self._stall_limit / 2)
        if stalled is not None:
            return stalled
        if self._stopping:
            return "shutting down"
        if not self._loaded:
            return "loading the checkpoint"
        for trouble in self._troubles:
            if reason := trouble():
                return reason
        if time.monotonic() - self._last_reply > FRESH_SECONDS:
            return "not consuming: no reply from Redis"
        return None

    def _stall_reason(self, limit: float) -> str | None:
        seconds = self._stalled_seconds()
        if seconds < limit:
            return None
        return f"the engine has not finished a step for {seconds:.0f} s"


@contextlib.contextmanager
def serve(host: str, port: int, registry: CollectorRegistry, readiness: Readiness) -> Iterator[str]:
    """Serve until the end of the block; yields the base URL.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        registry: The metrics.
        readiness: Whether the worker is ready.

    Raises:
        HealthError: The port is taken, or the address does not belong to this machine.
    """
    pages = {
        "/metrics": metrics_page(registry),
        "/healthz": lambda _: state_answer("alive", readiness.not_alive_reason()),
        "/readyz": lambda _: state_answer("ready", readiness.not_ready_reason()),
    }
    with serve_pages(host, port, pages) as url:
        yield url


@contextlib.contextmanager
def serve_pages(host: str, port: int, pages: Mapping[str, Page]) -> Iterator[str]:
    """Serve `pages` until the end of the block; yields the base URL. Raises `HealthError`."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(serving(host, port, pages))
        except (OSError, ValueError) as error:
            raise HealthError(
                f"cannot serve metrics on {host}:{port} ({error}): give another --metrics-port, "
                "or 0; or another SQE_METRICS_HOST"
            ) from None
        yield url


def metrics_page(registry: CollectorRegistry) -> Page:
    """Build the page of the metrics in `registry`, in the format that is asked for."""

    def metrics(accept: str) -> Answer:
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return Answer(HTTPStatus.OK, encode(registry), content_type)

    return metrics


def state_answer(good: str, reason: str | None) -> Answer:
    """Answer with 200 and `good`, or with 503 and the reason, if there is one."""
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    return Answer(status, f"{reason or good}\n".encode())
