"""The pages of a fleet: `/metrics`, `/healthz`, `/readyz` and `/targets`.

Knows the supervisor's answers and Prometheus' form of a list of targets; nothing of HTTP.
"""

import contextlib
import json
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from worker.fleet.merge import merged
from worker.fleet.supervisor import Supervisor
from worker.telemetry.health import metrics_page, serve_pages, state_answer
from worker.telemetry.server import Answer


@contextlib.contextmanager
def serve(host: str, port: int, supervisor: Supervisor) -> Iterator[str]:
    """Serve until the end of the block; yields the base URL.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        supervisor: Knows the workers.

    Raises:
        HealthError: The port is taken, or the address does not belong to this machine.
    """
    registry = CollectorRegistry()
    registry.register(merged(supervisor.states))
    pages = {
        "/metrics": metrics_page(registry),
        "/healthz": lambda _: state_answer("alive", supervisor.not_alive_reason()),
        "/readyz": lambda _: _readiness(supervisor),
        "/targets": lambda _: _targets(supervisor),
    }
    with serve_pages(host, port, pages) as url:
        yield url


def _readiness(supervisor: Supervisor) -> Answer:
    """One line for the fleet and one for each worker."""
    reason = supervisor.not_ready_reason()
    lines = [
        f"{state.member.name}: {state.not_ready_reason or 'ready'}" for state in supervisor.states()
    ]
    first = "ready" if reason is None else reason
    status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, "".join(f"{line}\n" for line in (first, *lines)).encode())


def _targets(supervisor: Supervisor) -> Answer:
    """The workers that serve pages, as Prometheus' `http_sd_configs` reads them."""
    targets = [
        {"targets": [urlsplit(state.url).netloc], "labels": state.member.labels}
        for state in supervisor.states()
        if state.url is not None
    ]
    return Answer(HTTPStatus.OK, json.dumps(targets).encode(), "application/json")
