"""Options that every command with inference in it takes, so that they read the same everywhere."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

device_option = click.option("--device", help="cpu, cuda or cuda:N.  [default: SQE_DEVICE or cpu]")

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Examples at once.  [default: 32 on cpu, 512 on cuda]",
)

halting_option = click.option(
    "--halting",
    type=click.Choice(["max_steps", "q"]),
    default="max_steps",
    show_default=True,
    help="When an example is answered: after all steps, or when the Q head says so.",
)


def dtype_option(*, default: str) -> Callable[[Command], Command]:
    """`--dtype`. A name that `hrm.inference.config.dtype_of` knows."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default=default,
        show_default=True,
        help="Of activations; bfloat16 is faster where the device has it, and rounds more. auto: "
        "the faster on the device.",
    )
