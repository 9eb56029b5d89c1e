"""Start a process that ends with this one, however this one ends, even by SIGKILL.

Knows processes and a pipe; nothing of what runs in them.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

WATCHED = 'exec 3<&0; { read -r _ <&3; kill -TERM $$; } >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
"""Shell code that becomes the program and leaves a watcher that stops it when stdin ends.

Standard input is a pipe whose other end only the owner holds, so it ends when the owner closes it
or dies. The watcher shares the program's process group, and the system does not reuse a process id
while its group has members, so the signal can never reach another process."""


def start_child(
    command: Sequence[str],
    *,
    log: IO[bytes] | int,
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, with its output in `log`.

    Closing the child's `stdin` sends it SIGTERM, and so does the end of this process. Ctrl-C in the
    terminal does not reach the child, because its owner may need it to finish.

    Args:
        command: The program and its arguments.
        log: File for standard output and standard error, or `subprocess.PIPE`.
        cwd: The child's folder; this process's by default.
        environ: The child's environment; this process's by default.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", WATCHED, "sh", *command],
        cwd=cwd,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end_child(process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
    """Send a child SIGTERM and wait for its end.

    Raises `subprocess.TimeoutExpired` after `timeout` seconds, if any are given.
    """
    assert process.stdin is not None  # noqa: S101 - `start_child` asked for a pipe
    process.stdin.close()
    process.wait(timeout)
