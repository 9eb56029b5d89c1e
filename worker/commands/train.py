"""`sqe-hrm train`: a checkpoint from a file of accepted messages."""

import hashlib
import json
import platform
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hrm.batch import encode
from hrm.checkpoint import TrainingRecord, pair_hash, save_checkpoint
from hrm.config import ConversionConfig, HRMConfig
from hrm.conversion import Converter
from hrm.files import RefusedLine, read_messages
from hrm.fit import FitResult, Measurement, fit
from hrm.network import HRM
from hrm.training import StepReport, Trainer, TrainingConfig
from schemas import VOCABULARY_SIZE, HRMExample, SQEHRMError

MEASURED = "measured.json"
"""The file of a checkpoint folder with what training measured and how it was run."""

_RECIPE = TrainingConfig()


class TrainingDataError(SQEHRMError):
    """A file that cannot be trained on."""


@click.command("train")
@click.option(
    "--data-path",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSONL of accepted messages, or of pairs of prompt and completion.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="A folder."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--steps", default=_RECIPE.steps, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=_RECIPE.batch_size, show_default=True, type=click.IntRange(1))
@click.option(
    "--lr", default=_RECIPE.lr, show_default=True, type=click.FloatRange(0, min_open=True)
)
@click.option("--hidden-size", default=256, show_default=True, type=click.IntRange(16))
@click.option("--num-heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--layers", default=2, show_default=True, type=click.IntRange(1), help="Per level.")
@click.option("--puzzle-space", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--exploration", default=0.5, show_default=True, type=click.FloatRange(0, 1))
@click.option("--forward-dtype", default="float32", type=click.Choice(["float32", "bfloat16"]))
@click.option("--measure-every", default=100, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
def command(data_path: Path, output: Path, device: str, **options: Any) -> None:  # noqa: ANN401
    """Train a checkpoint until it solves the accepted messages, and keep the best weights."""
    conversion = ConversionConfig(puzzle_space=options["puzzle_space"])
    examples = _read_examples(data_path, Converter(conversion))
    size = options["hidden_size"]
    try:
        config = HRMConfig(
            hidden_size=size,
            puzzle_emb_ndim=size,
            num_heads=options["num_heads"],
            H_layers=options["layers"],
            L_layers=options["layers"],
            num_puzzle_identifiers=_table_rows(examples, options["puzzle_space"]),
            halt_exploration_prob=options["exploration"],
        )
    except ValueError as error:
        raise click.UsageError(f"--hidden-size and --num-heads: {error}") from None
    recipe = TrainingConfig(
        steps=options["steps"],
        batch_size=options["batch_size"],
        lr=options["lr"],
        seed=options["seed"],
    )
    torch.manual_seed(recipe.seed)
    network = HRM(config, getattr(torch, options["forward_dtype"])).to(device)
    trainer = Trainer(network, encode(examples, config).to(device), recipe)
    started = time.monotonic()
    result = _run(trainer, options["measure_every"])
    save_checkpoint(output, result.state, config, conversion, _record(examples))
    figures = _measured(data_path, device, recipe, result, time.monotonic() - started)
    (output / MEASURED).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{output}: step {result.best.step}, {_line(result.best)}")


def _read_examples(path: Path, converter: Converter) -> list[HRMExample]:
    examples = []
    with path.open("rb") as file:
        for index, content in read_messages(file):
            if isinstance(content, RefusedLine):
                # A model trained on part of its file would be taken for one trained on all of it.
                raise TrainingDataError(f"{path}: line {content.number}: {content.detail}")
            examples.append(
                converter.convert(content.prompt, content.completion, content.puzzle_id, index)
            )
    if not examples:
        raise TrainingDataError(f"{path} holds no message: give accepted prompts and completions")
    return examples


def _table_rows(examples: list[HRMExample], puzzle_space: int) -> int:
    return max(puzzle_space, *(example.puzzle_id + 1 for example in examples))


def _record(examples: list[HRMExample]) -> TrainingRecord:
    tokens = Counter(token for example in examples for token in example.target_sequence)
    return TrainingRecord(
        pair_hashes=frozenset(
            pair_hash(example.puzzle_id, example.input_sequence) for example in examples
        ),
        target_token_counts=tuple(tokens[token] for token in range(VOCABULARY_SIZE)),
    )


def _run(trainer: Trainer, measure_every: int) -> FitResult:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("loss", total=trainer.config.steps)

        def on_step(report: StepReport) -> None:
            progress.update(task, completed=report.step, description=f"loss {report.loss:.3f}")

        def on_measurement(measurement: Measurement) -> None:
            console.print(f"step {measurement.step:5d}  {_line(measurement)}", highlight=False)

        return fit(
            trainer, measure_every=measure_every, on_step=on_step, on_measurement=on_measurement
        )


def _line(measurement: Measurement) -> str:
    parts = (
        f"{name}: {figures.solved}/{figures.examples} solved, "
        f"Q right {figures.q_accuracy:.1%}, {figures.mean_act_steps:.1f} steps"
        for name, figures in (("max_steps", measurement.max_steps), ("q", measurement.q))
    )
    return "   ".join(parts)


def _measured(
    data_path: Path, device: str, recipe: TrainingConfig, result: FitResult, seconds: float
) -> dict[str, Any]:
    hardware = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        hardware = torch.cuda.get_device_name(device)
    return {
        "command": shlex.join(["sqe-hrm", *sys.argv[1:]]),
        "data_sha256": hashlib.sha256(data_path.read_bytes()).hexdigest(),
        "recipe": recipe.model_dump(),
        "training_seconds": round(seconds, 1),
        "hardware": hardware,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "steps_run": result.last_step,
        "best_step": result.best.step,
        "training_examples": {
            "max_steps": asdict(result.best.max_steps),
            "q": asdict(result.best.q),
        },
    }
