"""The options of `sqe-hrm train`: the fields of `hrm.training.options`, on the command line.

Knows the command line; what the values mean is said by the fields' descriptions.
"""

from enum import Enum
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic import BaseModel, ValidationError

from hrm.data.config import MAX_HASHED_TOKENS
from hrm.training.answers import Contradictions
from hrm.training.examples import MAX_PUZZLES
from hrm.training.options import OptionsError, RunPolicy, TrainingOptions
from hrm.training.trainer import Recipe
from schemas import first_problem
from worker.cli.options import (
    FILE,
    Decorator,
    all_of,
    data_path_option,
    device_option,
)

_NOT_OPTIONS = {"beta1", "beta2"}
"""Fields of the recipe that nobody needs to tune."""

MAX_SEEDS = 100
"""Far more runs than a spread needs; a mistyped number must not fill the disk."""


def _option(
    name: str,
    type_: click.ParamType[Any] | type | None = None,
    *,
    metavar: str | None = None,
    model: type[BaseModel] = TrainingOptions,
) -> Decorator:
    """The option for a field of `model`, whose values pydantic checks."""
    field = model.model_fields[name]
    default = field.default.value if isinstance(field.default, Enum) else field.default
    return click.option(
        f"--{_dashed(name)}",
        default=default,
        show_default=True,
        type=type_ or type(default),
        metavar=metavar,
        help=field.description,
    )


def _flag(name: str) -> Decorator:
    return click.option(
        f"--{_dashed(name)}", is_flag=True, help=TrainingOptions.model_fields[name].description
    )


def _dashed(name: str) -> str:
    return name.replace("_", "-")


training_options = all_of(
    data_path_option("JSONL file of accepted messages or prompt-completion pairs."),
    click.option(
        "--output",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the run, which becomes a checkpoint.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run in --output."),
    click.option(
        "--seeds",
        type=click.IntRange(1, MAX_SEEDS),
        help="Runs to make, with as many seeds from --seed on. The best becomes the checkpoint.",
    ),
    _option("init_from", str, metavar="CHECKPOINT"),
    _flag("forget"),
    _option("contradictions", click.Choice([each.value for each in Contradictions])),
    _option("held_out", FILE),
    _option("held_out_share", float),
    device_option(),
    _option("forward_dtype", click.Choice(["auto", "bfloat16", "float32"])),
    _option("hidden_size", click.IntRange(16, 8192)),
    _option("num_heads", click.IntRange(1)),
    _option("layers", click.IntRange(1, 64)),
    _option("puzzle_space", click.IntRange(1, MAX_PUZZLES)),
    _option("conversion", click.IntRange(1, 2)),
    _option("hashed_tokens", click.IntRange(1, MAX_HASHED_TOKENS)),
    _flag("case_sensitive"),
    _flag("find_tasks"),
    _option("steps", int),
    *(_option(name) for name in Recipe.model_fields if name not in _NOT_OPTIONS),
    _option("exploration"),
    _option("measure_every"),
    _option("measure_sample"),
    *(_option(name, int, model=RunPolicy) for name in RunPolicy.model_fields),
)
"""All options, in the order of the help."""


def options_of(ctx: click.Context) -> tuple[TrainingOptions, RunPolicy]:
    """The options that were given in the call. Raises `UsageError`.

    What was left at its default is not set, so that a saved run or a checkpoint can provide it.
    """
    given = {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    try:
        return (
            TrainingOptions(**{n: given[n] for n in given.keys() & TrainingOptions.model_fields}),
            RunPolicy(**{n: given[n] for n in given.keys() & RunPolicy.model_fields}),
        )
    except ValidationError as error:
        problem = first_problem(error)
        raise click.UsageError(f"--{_dashed(problem.field)}: {problem.message}") from None


def usage_error(error: OptionsError) -> click.UsageError:
    """`error` in the spelling of the command line."""
    names = " and ".join(f"--{_dashed(name)}" for name in error.names)
    return click.UsageError(f"{names}{error.problem}")
