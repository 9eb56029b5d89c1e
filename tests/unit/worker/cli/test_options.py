"""Options read the same in every command, and a device is pinned before torch is asked."""

from collections.abc import Iterator

import click
import pytest
import torch

from worker.cli.main import LazyGroup, cli
from worker.cli.options import batch_size_on, use_device
from worker.process.devices import Device
from worker.settings import Settings

SHARED = ("--json", "--max-steps", "--strategy", "--weights", "--word-hash")


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, context)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command


ALL = dict(commands(LazyGroup(), click.Context(cli)))


def options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_is_for(name: str) -> None:
    for option in options(ALL[name]):
        assert option.help, option.name
        first = option.help.split()[0]
        assert first[0].isupper() or first == "cpu,", option.help
        assert first not in {"Of", "So", "That", "Those", "What", "Under"}, option.help
        assert option.help[-1] in ".]", option.help


@pytest.mark.parametrize("flag", SHARED)
def test_a_shared_option_has_one_help_text(flag: str) -> None:
    texts = [
        option.help
        for command in ALL.values()
        for option in options(command)
        if flag in option.opts
    ]
    assert len(texts) > 1
    assert len(set(texts)) == 1


def test_the_settings_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    try:
        assert use_device(Settings(threads=before + 1)) == Device("cpu", "cpu")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_none_is_a_wrong_call() -> None:
    with pytest.raises(click.UsageError, match="device 'tpu': give cpu, cuda or cuda:N"):
        use_device(Settings(device="tpu"))


def test_the_batch_size_depends_on_the_device() -> None:
    cpu, cuda = Device("cpu", "cpu"), Device("cuda:1", "cuda:0")
    assert [batch_size_on(device, None) for device in (cpu, cuda)] == [32, 512]
    assert batch_size_on(cuda, 7) == 7
