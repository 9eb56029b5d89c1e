"""Starts a process that ends with this one, however this one ends, even by SIGKILL.

Knows processes and a pipe; nothing of what runs in them.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

WATCHED = 'exec 3<&0; { read -r _ <&3; kill -TERM $$; } >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
"""Shell: become the program, and leave a watcher behind that stops it when standard input ends.

Standard input is a pipe whose other end only the owner holds, so it ends when the owner closes it
or dies. The watcher shares the program's process group, and a process id is not given out again
while its group has members: the signal can never hit a stranger."""


def start_child(
    command: Sequence[str],
    *,
    log: IO[bytes],
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """`command`, in a session of its own, with its output in `log`.

    Closing its `stdin` sends it SIGTERM, and so does the end of this process. Ctrl-C in the
    terminal does not reach it: it is for the owner, which may need the child to finish.
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
    """Send it SIGTERM and wait. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
    assert process.stdin is not None  # noqa: S101 - `start_child` asked for a pipe
    process.stdin.close()
    process.wait(timeout)
