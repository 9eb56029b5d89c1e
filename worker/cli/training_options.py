"""The options of `sqe-hrm train`: what there are, what inherits from what, what goes together.

Knows the command line; what the values do is `hrm`'s.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from pydantic import ValidationError

from hrm.checkpoint import Checkpoint
from hrm.training.examples import MAX_PUZZLES
from hrm.training.state import Option
from hrm.training.trainer import TrainingConfig
from schemas import first_problem
from worker.cli.options import all_of, data_path_option, device_option
from worker.process import devices

_NOT_OPTIONS = {"beta1", "beta2"}
"""Of the recipe: nobody needs to tune them."""


class FiniteRange(click.FloatRange):
    """A range that NaN is not in."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """The number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is no number", param, ctx)
        return number


def _of_the_recipe() -> Iterator[Callable[..., Any]]:
    """An option for each field of the recipe, whose values pydantic checks."""
    for name, field in TrainingConfig.model_fields.items():
        if name not in _NOT_OPTIONS:
            yield click.option(
                f"--{name.replace('_', '-')}",
                default=field.default,
                show_default=True,
                type=type(field.default),
                help=field.description,
            )


_OPTIONS = (
    data_path_option("JSONL file of accepted messages or prompt-completion pairs."),
    click.option(
        "--output",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="A folder.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in --output."),
    click.option("--init-from", metavar="CHECKPOINT", help="Start with its weights and its sizes."),
    click.option(
        "--held-out",
        type=click.Path(exists=True, dir_okay=False),
        help="JSONL to measure on and never train on.",
    ),
    click.option(
        "--held-out-share",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="Share of --data-path to hold out instead, drawn by --seed.",
    ),
    device_option(),
    click.option(
        "--forward-dtype",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "bfloat16", "float32"]),
        help="Of activations in training; auto: bfloat16 where the device computes in it.",
    ),
    click.option("--hidden-size", default=256, show_default=True, type=click.IntRange(16, 8192)),
    click.option("--num-heads", default=8, show_default=True, type=click.IntRange(1)),
    click.option(
        "--layers", default=2, show_default=True, type=click.IntRange(1, 64), help="Per level."
    ),
    click.option(
        "--puzzle-space",
        default=1000,
        show_default=True,
        type=click.IntRange(1, MAX_PUZZLES),
        help="Puzzle ids that messages without one are given.",
    ),
    *_of_the_recipe(),
    click.option(
        "--exploration",
        default=0.5,
        show_default=True,
        type=FiniteRange(0, 1),
        help="Share of examples that may not halt at once.",
    ),
    click.option(
        "--measure-every",
        default=100,
        show_default=True,
        type=click.IntRange(1),
        help="Steps from one measurement to the next.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(1),
        help="Stop after so many measurements that were no better than the best.",
    ),
    click.option(
        "--save-every",
        type=click.IntRange(1),
        help="Save a step_N to resume from every so many steps, beside the best and the last.",
    ),
    click.option(
        "--keep",
        default=3,
        show_default=True,
        type=click.IntRange(1),
        help="So many step_N are kept, the latest.",
    ),
)


training_options = all_of(*_OPTIONS)


def forward_dtype(options: Mapping[str, Option], device: devices.Device) -> Option:
    """What was asked for; for `auto` bfloat16 where it saves time, which emulated it does not."""
    if options["forward_dtype"] != "auto":
        return options["forward_dtype"]
    if device.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Releases of torch that cannot tell get what is right everywhere.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bfloat16" if fast else "float32"


def inherit(
    ctx: click.Context,
    asked: dict[str, Any],
    inherited: Mapping[str, Any],
    source: str,
    mend: str,
) -> None:
    """Take options from `source`. One that the caller gave, and gave another value, is refused."""
    for name, value in inherited.items():
        given = ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and asked[name] != value:
            option = f"--{name.replace('_', '-')}"
            has = "none" if value is None else value
            raise click.UsageError(f"{option} {asked[name]}, but {source} has {has}: {mend}")
        asked[name] = value


def sizes_of(base: Checkpoint) -> dict[str, Option]:
    """The options that a run takes from the checkpoint it starts with."""
    config = base.config
    same = config.H_layers == config.L_layers
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "layers": config.H_layers if same else f"{config.H_layers} and {config.L_layers}",
        "puzzle_space": base.conversion.puzzle_space,
    }


def recipe_of(asked: Mapping[str, Any]) -> TrainingConfig:
    """The recipe in the options. Raises `UsageError`."""
    names = TrainingConfig.model_fields.keys() - _NOT_OPTIONS
    try:
        return TrainingConfig(**{name: asked[name] for name in names})
    except ValidationError as error:
        problem = first_problem(error)
        raise click.UsageError(f"--{problem.field.replace('_', '-')}: {problem.message}") from None


def check_together(asked: Mapping[str, Any], save_every: int | None) -> None:
    """Raise `UsageError` for options that exclude each other."""
    if asked["held_out"] is not None and asked["held_out_share"] is not None:
        raise click.UsageError("--held-out and --held-out-share: give one of them")
    if save_every is not None and save_every % asked["measure_every"]:
        raise click.UsageError(
            f"--save-every {save_every}: what is saved is measured, so give a multiple of "
            f"--measure-every, {asked['measure_every']}"
        )
