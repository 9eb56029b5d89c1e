"""worker.fleet.members: which workers `--devices` names, and their shares of the cores."""

from typing import NoReturn

import pytest

from worker.fleet.members import DevicesError, Member, read_members, shares, usable_cores


def no_gpus() -> NoReturn:
    raise AssertionError("asked for the GPUs")


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda:0 , cuda:01", ["cuda:0", "cuda:1"]),
        ("cpu,cpu", ["cpu/0", "cpu/1"]),
        ("cpux2", ["cpu/0", "cpu/1"]),
        ("cpux1", ["cpu"]),
        ("cuda:0x3", ["cuda:0/0", "cuda:0/1", "cuda:0/2"]),
        ("cudax2,cuda:10,cuda:0", ["cuda:0/0", "cuda:0/1", "cuda:10", "cuda:0/2"]),
    ],
)
def test_each_entry_is_a_device_or_several_workers_of_one(devices: str, names: list[str]) -> None:
    assert [member.name for member in read_members(devices, no_gpus)] == names


def test_all_is_every_visible_gpu() -> None:
    assert read_members("all", lambda: 2) == (Member("cuda:0"), Member("cuda:1"))
    names = [member.name for member in read_members("allx2,cpu", lambda: 2)]
    assert names == ["cuda:0/0", "cuda:0/1", "cuda:1/0", "cuda:1/1", "cpu"]


def test_all_without_a_gpu_is_refused() -> None:
    with pytest.raises(DevicesError, match="'all' means every visible GPU, and there is none"):
        read_members("all", lambda: 0)


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ("", "'' is no device: give cpu, cuda:N or all"),
        ("cpu,", "'' is no device"),
        ("gpu", "'gpu' is no device"),
        ("cuda:0;cuda:1", "'cuda:0;cuda:1' is no device"),
        ("cuda:x4", "'cuda:x4' is no device"),
        ("cpux", "'cpux' is no device"),
        ("cpux0", "'cpux0': give 1 to 256 workers"),
        ("cpux257", "'cpux257': give 1 to 256 workers"),
        ("cpux999999999", "give 1 to 256 workers"),
        ("cpux200,cuda:0x57", "257 workers: at most 256"),
    ],
)
def test_anything_else_is_refused_by_name(devices: str, problem: str) -> None:
    with pytest.raises(DevicesError, match=problem) as caught:
        read_members(devices, no_gpus)
    assert "\n" not in str(caught.value)


def test_workers_of_one_device_are_told_apart_by_a_label() -> None:
    assert Member("cuda:1").labels == {"device": "cuda:1"}
    assert Member("cuda:1", 3).labels == {"device": "cuda:1", "process": "3"}


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [(2, 2, [1, 1]), (8, 3, [3, 3, 2]), (16, 1, [16]), (2, 4, [1, 1, 1, 1])],
)
def test_cores_are_divided_and_each_worker_has_one(
    cores: int, workers: int, expected: list[int]
) -> None:
    assert shares(cores, [Member("cpu", number) for number in range(workers)]) == expected


def test_only_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
