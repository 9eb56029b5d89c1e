"""The options of the commands that take several checkpoints: `--checkpoints A B --weights 3 1`.

Knows click; imports no torch, so that a command can pin its device first.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

STRATEGIES = ("weighted_average", "voting", "stacking")
"""The values of `hrm.ensemble.combiners.Strategy`."""

DEFAULT_STRATEGY = "weighted_average"

Command = TypeVar("Command", bound=Callable[..., Any])


class ListCommand(click.Command):
    """A command whose repeatable options take all values that follow: `--checkpoints A B`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, as click wants it."""
        flags = {
            flag
            for parameter in self.params
            if isinstance(parameter, click.Option) and parameter.multiple
            for flag in parameter.opts
        }
        return super().parse_args(ctx, list(_repeated(args, flags)))


def _repeated(args: Sequence[str], flags: set[str]) -> Iterator[str]:
    flag, values = None, 0
    for arg in args:
        if arg.startswith("-"):
            flag, values = (arg if arg in flags else None), 0
        elif flag is not None:
            values += 1
            if values > 1:
                yield flag
        yield arg


def ensemble_options(*, required: bool, combiner_help: str) -> Callable[[Command], Command]:
    """`--checkpoints`, `--weights`, `--strategy` and `--combiner`, for a `ListCommand`."""
    options = (
        click.option(
            "--checkpoints",
            multiple=True,
            required=required,
            metavar="A B ...",
            help="Two or more names or paths, to run as one.",
        ),
        click.option(
            "--weights",
            multiple=True,
            type=float,
            metavar="X Y ...",
            help="One for each of --checkpoints.  [default: all alike]",
        ),
        click.option(
            "--strategy",
            type=click.Choice(STRATEGIES),
            default=DEFAULT_STRATEGY,
            show_default=True,
            help="How --checkpoints find a token: mean of log-probabilities, most votes, or a "
            "combiner fitted on calibration examples.",
        ),
        click.option(
            "--combiner", type=click.Path(path_type=Path, dir_okay=False), help=combiner_help
        ),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
