"""The loopback device of a network namespace: taken down, it cuts off what is connected by TCP.

`unshare --map-root-user --net` starts a program in a namespace of its own, without privileges where
the system permits that. Unix sockets still work there when loopback is down.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence

Away = Callable[[], contextlib.AbstractContextManager[None]]
"""Cuts off a way to Redis for a block."""

UNSHARE = ("unshare", "--map-root-user", "--net")

MARK = "FAULTS_OWN_NETWORK"
"""Variable of a process that `exec_in_own_namespace` started."""

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""See netdevice(7)."""


def exec_in_own_namespace(command: Sequence[str]) -> None:
    """Replace this process by `command` in a namespace of its own; return if there can be none."""
    if is_own() or shutil.which("unshare") is None:
        return
    if subprocess.run((*UNSHARE, "true"), capture_output=True, check=False).returncode == 0:
        os.execvpe(UNSHARE[0], (*UNSHARE, *command), {**os.environ, MARK: "1"})  # noqa: S606


def is_own() -> bool:
    """Whether this process has a namespace of its own."""
    return MARK in os.environ


@contextlib.contextmanager
def down() -> Iterator[None]:
    """Drop whatever is sent by TCP, without telling anybody."""
    assert is_own()
    set_up(False)
    try:
        yield
    finally:
        set_up(True)


def set_up(up: bool) -> None:  # noqa: FBT001
    """Take loopback up or down."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
        (flags,) = struct.unpack("16xh14x", request)
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))
