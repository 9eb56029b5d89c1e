"""Tell systemd that this process is ready, alive or stopping (`Type=notify`, `WatchdogSec=`).

Follows sd_notify(3) and sd_watchdog_enabled(3): datagrams of `NAME=value` lines to the Unix socket
that `NOTIFY_SOCKET` names. Without that variable nothing is sent. Knows reasons for not being ready
or alive; nothing of what they are about.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Self

BEAT_SECONDS = 0.5
"""Longest pause between two looks, so that whoever waits for the service waits hardly longer."""

BEATS_A_TIMEOUT = 4
"""Signs of life within systemd's timeout: three may come late. sd_watchdog_enabled(3) asks for
two."""

SOCKET, TIMEOUT, PROCESS = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


@dataclass(frozen=True)
class Notifier:
    """The way to systemd, if it started this process."""

    address: str | None
    """The socket's; None if nobody wants to be told."""
    watchdog_seconds: float | None = None
    """Time without a sign of life after which systemd ends the process; None if it does not."""

    @classmethod
    def from_env(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Read systemd's variables and remove them: processes started here must not use them."""
        address, timeout, process = (environ.pop(name, "") for name in (SOCKET, TIMEOUT, PROCESS))
        if not address.startswith(("/", "@")):
            return cls(None)
        wanted = timeout.isdecimal() and process in {"", str(os.getpid())}
        return cls(address, int(timeout) / 1e6 if wanted else None)

    def send(self, *lines: str) -> None:
        """Send lines such as `READY=1`. Nothing happens if nobody listens."""
        if self.address is None:
            return
        # A name with @ is in Linux's abstract namespace, written with a null byte.
        name = self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
        ):
            out.settimeout(BEAT_SECONDS)
            out.sendto("\n".join(lines).encode(), name)

    @contextlib.contextmanager
    def informed(
        self,
        *,
        not_ready: Callable[[], str | None],
        not_alive: Callable[[], str | None],
        is_stopping: Callable[[], bool],
    ) -> Iterator[None]:
        """Keep systemd informed until the end of the block, in a thread.

        Args:
            not_ready: Returns why the service is not ready; None once it is.
            not_alive: Returns why the service has to be restarted; None if it is alive. Only then
                does systemd get a sign of life.
            is_stopping: Whether the service is ending.
        """
        if self.address is None:
            yield
            return
        ended = threading.Event()
        beat = BEAT_SECONDS
        if self.watchdog_seconds is not None:
            beat = min(beat, self.watchdog_seconds / BEATS_A_TIMEOUT)

        def watch() -> None:
            said: set[str] = set()
            while True:
                reason = not_ready()
                now = {f"STATUS={' '.join((reason or 'ready').split())}"}
                if reason is None:
                    now.add(READY)
                if is_stopping():
                    now.add(STOPPING)
                new = sorted(now - said)
                said = now | (said & {READY, STOPPING})
                if self.watchdog_seconds is not None and not_alive() is None:
                    new.append(ALIVE)
                if new:
                    self.send(*new)
                if ended.wait(beat):
                    return

        thread = threading.Thread(target=watch, name="notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.send(STOPPING)
