"""The options that several commands share, and the device that they name.

Knows click, settings and devices. Imports torch only once the device is pinned.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from hrm.data.config import MAX_HASHED_TOKENS, ConversionConfig, WordHash
from schemas import HaltedBy, first_problem
from worker.process import devices
from worker.settings import Settings

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
"""A file to read."""

NEW_FILE = click.Path(path_type=Path, dir_okay=False)
"""A file to write."""

ANY_CONTENT = "JSONL file of messages, prompt-completion pairs, or converted examples."

DEFAULT_BATCH_SIZE = {"cpu": 32, "cuda": 512}
"""More than a worker's slots: nobody waits for a single answer from a file."""

MAX_STEPS = 1000
"""Beyond this an example takes seconds, and the states have long settled."""

STRATEGIES = ("weighted_average", "voting", "stacking")
"""The values of `hrm.ensemble.combiners.Strategy`, whose module imports torch."""

DEFAULT_STRATEGY = "weighted_average"

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def all_of(*options: Decorator) -> Decorator:
    """Several options as one decorator, listed by `--help` in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# Data.


def data_path_option(contents: str = ANY_CONTENT, *, required: bool = True) -> Decorator:
    """`--data-path`, with a help text that says what the file contains."""
    return click.option("--data-path", required=required, type=FILE, help=contents)


tokenizer_options = all_of(
    click.option(
        "--conversion",
        "version",
        type=click.IntRange(1, 2),
        default=1,
        show_default=True,
        help="Version: 1 has 12 tokens and reads 98 words, 2 reads whole texts.",
    ),
    click.option(
        "--hashed-tokens",
        type=click.IntRange(1, MAX_HASHED_TOKENS),
        default=ConversionConfig().hashed_tokens,
        show_default=True,
        help="Conversion 2: number of tokens for words.",
    ),
    click.option(
        "--case-sensitive", is_flag=True, help="Conversion 2: tell upper and lower case apart."
    ),
    click.option(
        "--word-hash",
        type=click.Choice(WordHash, case_sensitive=False),
        default=WordHash.MD5.value,
        show_default=True,
        help="Digest that maps words outside the vocabulary to tokens.",
    ),
)


def conversion_of(**fields: object) -> ConversionConfig:
    """The conversion that options name. Raises `UsageError` if they contradict each other."""
    try:
        return ConversionConfig.model_validate(fields)
    except ValidationError as error:
        raise click.UsageError(first_problem(error).message) from None


def strict_option(condition: str = "any line was refused") -> Decorator:
    """`--strict`, which makes `condition` a failure."""
    return click.option("--strict", is_flag=True, help=f"Exit with status 1 if {condition}.")


# Results.

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

report_option = click.option(
    "--output", type=NEW_FILE, help="File to write the complete report to, as JSON."
)


# Inference.


def checkpoint_option(*, default: str | None = None) -> Decorator:
    """`--checkpoint`. Without a default, `Settings` has one."""
    unset = "" if default else "  [default: SQE_CHECKPOINT or sqe-demo]"
    return click.option(
        "--checkpoint", default=default, show_default=True, help=f"Checkpoint name or path.{unset}"
    )


def device_option(*, default: str | None = None) -> Decorator:
    """`--device`. Without a default, `Settings` has one."""
    unset = "" if default else "  [default: SQE_DEVICE or cpu]"
    return click.option(
        "--device", default=default, show_default=True, help=f"cpu, cuda or cuda:N.{unset}"
    )


def devices_option(*, default: str = "") -> Decorator:
    """`--devices`, with a help text that ends with `default`."""
    return click.option(
        "--devices",
        metavar="LIST",
        help="Run a worker for each of these: cuda:0,cuda:1 or cuda:0x4 (four on one GPU), cpux2, "
        f"or all (every visible GPU).{default}",
    )


def pin(name: str, *, check: bool = True) -> devices.Device:
    """Pin this process to the device `name`.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.
        check: Also make sure that torch finds the device, for which torch is imported.

    Raises:
        click.UsageError: The device cannot be used.
    """
    try:
        device = devices.pin(name)
        if check:
            devices.check(device)
    except devices.DeviceError as error:
        raise click.UsageError(str(error)) from None
    return device


def use_device(settings: Settings) -> devices.Device:
    """Pin this process to the device of `settings`, and let torch use as many threads as they say.

    Raises `UsageError`.
    """
    device = pin(settings.device)
    if settings.threads is not None:
        import torch  # noqa: PLC0415 - after the device is pinned

        torch.set_num_threads(settings.threads)
    return device


def batch_size_on(device: devices.Device, asked: int | None) -> int:
    """The value of `--batch-size`, or the default of `device`."""
    return asked or DEFAULT_BATCH_SIZE["cuda" if device.is_cuda else "cpu"]


batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Examples computed together.  [default: 32 on cpu, 512 on cuda]",
)

halting_option = click.option(
    "--halting",
    type=click.Choice(["max_steps", "q"]),
    default="max_steps",
    show_default=True,
    help="When an example is done: after all its steps, or as soon as the Q head halts it.",
)


def worker_halting_option(*, default: str | None = None) -> Decorator:
    """`--halting` for workers. Without a default, `Settings` has one."""
    unset = "" if default else "  [default: SQE_HALTING or auto]"
    return click.option(
        "--halting",
        type=click.Choice(["auto", "max_steps", "q"]),
        default=default,
        show_default=True,
        help="When a message is done: after all its steps, as soon as the Q head halts it, or "
        f"whichever the checkpoint's recorded figures support.{unset}",
    )


RULES = {
    "both": (HaltedBy.MAX_STEPS, HaltedBy.Q),
    "max_steps": (HaltedBy.MAX_STEPS,),
    "q": (HaltedBy.Q,),
}
"""The halting rules that each choice of `rules_option` measures."""


def rules_option(description: str) -> Decorator:
    """`--halting` for commands that measure under several rules."""
    return click.option(
        "--halting",
        type=click.Choice(list(RULES)),
        default="both",
        show_default=True,
        help=description,
    )


def max_steps_option(*, limit: int | None = MAX_STEPS) -> Decorator:
    """`--max-steps`, up to `limit`."""
    return click.option(
        "--max-steps",
        type=click.IntRange(1, limit),
        help="ACT steps per example; may exceed what a checkpoint was trained with.  "
        "[default: each checkpoint's own]",
    )


def dtype_option(*, default: str) -> Decorator:
    """`--dtype`. A name that `hrm.inference.dtypes.Dtypes` knows."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
        default=default,
        show_default=True,
        help="Data type of activations. bfloat16 is faster on devices that support it, and less "
        "exact; int8 is that of matrix products alone, on devices that have them, and falls "
        "back to float32. auto picks the fastest; int8 only if the checkpoint records that it "
        "changes no verdict, or a comparison at the start shows it.",
    )


file_inference_options = all_of(
    device_option(),
    batch_size_option,
    halting_option,
    max_steps_option(),
    dtype_option(default="float32"),
)
"""How a command evaluates a file."""


# Ensembles.


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


class ListGroup(ListCommand, click.Group):
    """A `ListCommand` that has subcommands, too."""


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


def ensemble_options(*, required: bool, combiner_help: str) -> Decorator:
    """`--checkpoints`, `--weights`, `--strategy` and `--combiner`, for a `ListCommand`."""
    return all_of(
        click.option(
            "--checkpoints",
            multiple=True,
            required=required,
            metavar="A B ...",
            help="Names or paths of two or more checkpoints to run as one.",
        ),
        click.option(
            "--weights",
            multiple=True,
            type=float,
            metavar="X Y ...",
            help="Weight of each checkpoint, in the same order.  [default: all equal]",
        ),
        click.option(
            "--strategy",
            type=click.Choice(STRATEGIES),
            default=DEFAULT_STRATEGY,
            show_default=True,
            help="How the checkpoints' predictions are combined: weighted mean of "
            "log-probabilities, majority vote, or a combiner fitted on calibration examples.",
        ),
        click.option("--combiner", type=NEW_FILE, help=combiner_help),
    )
