"""Run a fleet in this process: its workers, its pages, and what systemd is told.

Knows how the parts are put together; each part's rules are its own.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from worker.fleet import pages
from worker.fleet.child import Child
from worker.fleet.members import Member, shares, usable_cores
from worker.fleet.supervisor import End, Supervisor
from worker.process.notify import Notifier
from worker.settings import PREFIX, Settings

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "worker", "worker")
"""The command `sqe-hrm worker` of this installation. `-P` leaves out the current folder, in which
the user may have modules of the same names."""


def run(
    *, redis_url: str, settings: Settings, members: Sequence[Member], options: Sequence[str]
) -> End:
    """Keep a worker for each of `members` until SIGTERM or SIGINT, or until none is left.

    Args:
        redis_url: Broker and result backend.
        settings: The operator's settings.
        members: At least one.
        options: Options of `sqe-hrm worker` that all of them get.

    Raises:
        HealthError: The metrics port cannot be used.
    """
    notifier = Notifier.from_env()
    threads = dict(zip(members, shares(usable_cores(), members), strict=True))

    def start(member: Member) -> Child:
        command = [*COMMAND, *options, "--device", member.device, "--metrics-port", "0"]
        return Child(member, command, _environ(redis_url, settings, threads[member]))

    supervisor = Supervisor(
        members,
        start,
        grace_seconds=settings.shutdown_grace_seconds,
        stall_seconds=settings.stall_seconds,
    )
    informed = notifier.informed(
        not_ready=supervisor.not_complete_reason,
        not_alive=supervisor.not_alive_reason,
        is_stopping=lambda: supervisor.is_stopping,
    )
    with pages.serve(settings.metrics_host, settings.metrics_port, supervisor) as url, informed:
        # The first such line in the log, before those of the workers.
        logger.info("serving %s/metrics, /healthz, /readyz and /targets", url)
        logger.info("workers: %s", ", ".join(member.name for member in members))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, supervisor.on_signal)
        end = supervisor.run()
        logger.info("stopped")
        return end


def _environ(redis_url: str, settings: Settings, threads: int) -> dict[str, str]:
    """The environment of a worker. Its pages are only for this process and this machine."""
    own = {"redis_url": redis_url, "metrics_host": "127.0.0.1"}
    if settings.threads is None:
        own["threads"] = str(threads)
    environ = {**os.environ, **{PREFIX + name.upper(): value for name, value in own.items()}}
    environ.pop(f"{PREFIX}DEVICES", None)
    return environ
