"""The workers that `--devices` names, and their shares of the cores.

Knows device names and counts; nothing of processes. Asks CUDA's driver how many GPUs there are, and
loads no torch.
"""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from schemas import SQEHRMError

MOST_MEMBERS = 256
"""More than the cores of any machine that this was made for; a larger number is a slip."""

_ENTRY = re.compile(r"(all|cpu|cuda(?::(?P<number>\d{1,3}))?)(?:x(?P<times>\d{1,9}))?")


class DevicesError(SQEHRMError):
    """The list of devices cannot be read, or names none."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of the fleet."""

    device: str
    process: int | None = None
    """Number among the workers of its device, from 0; None if it is the only one."""

    @property
    def name(self) -> str:
        """Name in the log and on the pages."""
        return self.device if self.process is None else f"{self.device}/{self.process}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its metrics."""
        labels = {"device": self.device}
        if self.process is not None:
            labels["process"] = str(self.process)
        return labels


def count_gpus() -> int:
    """Count the GPUs that CUDA shows to this process, which `CUDA_VISIBLE_DEVICES` may limit."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def read_members(devices: str, gpus: Callable[[], int] = count_gpus) -> tuple[Member, ...]:
    """Read a list such as `cuda:0,cuda:1`, `cuda:0x4`, `all` or `cpux2`.

    Args:
        devices: Entries with commas between them. `xN` after an entry means N workers, and `all` is
            every visible GPU.
        gpus: Counts the visible GPUs; called only for `all`.

    Raises:
        DevicesError: An entry is none of these, or there is no GPU for `all`.
    """
    names = [name for entry in devices.split(",") for name in _expand(entry.strip(), gpus)]
    if len(names) > MOST_MEMBERS:
        raise DevicesError(f"devices {devices!r}: {len(names)} workers: at most {MOST_MEMBERS}")
    several = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    members = []
    for name in names:
        members.append(Member(name, seen[name] if name in several else None))
        seen[name] += 1
    return tuple(members)


def _expand(entry: str, gpus: Callable[[], int]) -> Iterator[str]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise DevicesError(
            f"devices: {entry!r} is no device: give cpu, cuda:N or all, each perhaps with a number "
            "of workers, as in cuda:0x4, and commas between them"
        )
    times = int(match["times"] or 1)
    if not 1 <= times <= MOST_MEMBERS:
        raise DevicesError(f"devices: {entry!r}: give 1 to {MOST_MEMBERS} workers")
    if match[1] == "all":
        count = gpus()
        if not count:
            raise DevicesError(
                "devices: 'all' means every visible GPU, and there is none: give cpu"
            )
        names = [f"cuda:{number}" for number in range(count)]
    else:
        names = ["cpu" if match[1] == "cpu" else f"cuda:{int(match['number'] or 0)}"]
    for name in names:
        yield from [name] * times


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shares(cores: int, members: Sequence[Member]) -> list[int]:
    """Divide the cores among the members: each has at least one, the first ones the remainder."""
    share, rest = divmod(cores, len(members))
    return [max(1, share + (number < rest)) for number in range(len(members))]
