"""The `sqe-hrm` command: finds the subcommand, runs it, and turns its errors into one line.

Every subcommand is one module of `worker.cli.commands` with a click command named `command`. It is
imported only when it is called, so that `sqe-hrm submit` needs no torch.
"""

import importlib
import os
import sys
from collections.abc import MutableMapping
from typing import NoReturn

import click

from schemas import SQEHRMError
from worker.installation import DISTRIBUTION, import_problem
from worker.settings import unknown_variables

COMMANDS = {
    "analyze": "count the messages, lengths, categories and tokens of a file",
    "checkpoint": "inspect or compare checkpoints, or promote one to be current",
    "convert": "turn SQE messages into HRM examples",
    "demo": "run Redis, a worker and an agent for half a minute, and measure them",
    "drift-test": "count the changes of accepted answers that a checkpoint misses",
    "ensemble": "evaluate several checkpoints as one, and each of them alone",
    "evaluate": "evaluate a file with a checkpoint",
    "monitor": "show queues, agents and streams, and test the workers once a minute",
    "schema": "print or publish the JSON Schemas",
    "submit": "send the messages of a file to the workers and collect the verdicts",
    "train": "train a checkpoint on accepted messages",
    "worker": "evaluate messages from the queues",
}
"""Names and help lines, so that listing the commands imports none of them."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user decides how OpenMP's threads wait."""

INTERRUPTED = 130
"""The shell's status for a program ended by Ctrl-C: 128 + SIGINT."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command `cmd_name`, imported now."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == "train":
            let_threads_sleep()
        module = importlib.import_module(f"worker.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


def let_threads_sleep(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user decided on it.

    By default they spin for milliseconds, which holds up whatever else needs the cores: a second
    training, for one. OpenMP reads the environment when torch loads it, so call this before.
    """
    if not any(name in environ for name in WAITING):
        environ["OMP_WAIT_POLICY"] = "passive"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="sqe-hrm")
def cli() -> None:
    """Evaluate the messages of SQE agents with a Hierarchical Reasoning Model.

    Exit status: 0 on success, 1 if the work failed, 2 if the command was called wrongly.
    """
    for line in unknown_variables():
        click.echo(f"sqe-hrm: warning: {line}", err=True)


def main() -> NoReturn:
    """Entry point of `sqe-hrm`."""
    try:
        sys.exit(cli(prog_name="sqe-hrm", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("sqe-hrm: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"hrm", "schemas", "worker"}:
            raise
        click.echo(f"sqe-hrm: error: {import_problem(error)}", err=True)
        sys.exit(1)
    except SQEHRMError as error:
        click.echo(f"sqe-hrm: error: {error}", err=True)
        sys.exit(1)
