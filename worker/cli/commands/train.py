"""`sqe-hrm train`: a checkpoint from a file of accepted messages."""

import hashlib
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from pydantic import ValidationError

from hrm.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.model.batch import Batch, encode
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from hrm.training.examples import hash_of, read_examples, split, training_record
from hrm.training.fit import Progress
from hrm.training.run import TrainingRun, claim_folder, enlarged, latest_step
from hrm.training.state import Option, RunRecord, SavedStep
from hrm.training.trainer import Trainer, TrainingConfig
from schemas import HRMExample, SQEHRMError, first_problem
from worker.cli.options import use_device
from worker.cli.tables.training import summary, training_display
from worker.cli.training_options import (
    check_together,
    forward_dtype,
    inherit,
    recipe_of,
    sizes_of,
    training_options,
)
from worker.process import devices
from worker.settings import Settings


@click.command("train")
@training_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data_path: Path,
    output: Path,
    resume: bool,  # noqa: FBT001 - click passes flags by name
    device: str | None,
    patience: int | None,
    save_every: int | None,
    keep: int,
    **options: Option,
) -> None:
    """Train a checkpoint until it solves the accepted messages, and keep the best weights.

    --output becomes a checkpoint of the best weights so far; beside them are step_N to resume
    from, curve.jsonl with every step, measured.json, and at the end training.png.

    Training stops after --steps, or when two measurements in a row find every message solved and
    the Q head right, under both halting rules, and a mean halting step under q of at most 3/8 of
    the most (6 of 16). The best is what solves most, then where the Q head is right most often,
    then what halts earliest; held-out messages have no say in it.

    --resume takes the options of the run and needs --data-path and --output alone. What would
    make its steps others is refused, --steps too, because the learning rates fall towards the
    last step: train on with --init-from.
    """
    settings = Settings.from_env(device=device)
    pinned = use_device(settings)
    saved = latest_step(output) if resume else None
    asked, base = _settled(ctx, options, pinned, output, saved, settings.checkpoint_dir)
    recipe = recipe_of(asked)
    check_together(asked, save_every)
    record = _record(data_path, asked, saved)
    source = base if saved is None else saved.checkpoint
    conversion = ConversionConfig(puzzle_space=asked["puzzle_space"])
    if source is not None:
        conversion = source.conversion
    data = _read(data_path, asked, Converter(conversion))
    torch.manual_seed(recipe.seed)
    network = _network(asked, data, source, resumed=saved is not None).to(pinned.torch_name)
    training, held_out = data.on(network)
    claim_folder(output, resume=resume)
    trainer = Trainer(network, training, recipe)
    if saved is not None:
        saved.restore(trainer)
    run = TrainingRun(
        output,
        trainer,
        conversion,
        training_record(data.training),
        record,
        _about(record, recipe, pinned),
        save_every=save_every,
        keep=keep,
    )
    progress = Progress(
        steps=recipe.steps,
        halt_max_steps=network.config.halt_max_steps,
        patience=patience,
        measurements=record.measurements,
    )
    with training_display(recipe.steps, trainer.step_count) as display:
        display.say(_start_line(network, data, pinned))
        run.train(
            progress,
            measure_every=asked["measure_every"],
            held_out=held_out,
            on_step=display.on_step,
            on_measurement=display.on_measurement,
        )
    assert progress.best is not None  # noqa: S101 - a run measures its last step
    click.echo(
        f"{output}: stopped after {trainer.step_count} steps ({progress.stopped}), "
        f"best is step {progress.best.step}: {summary(progress.best)}"
    )


@dataclass(frozen=True)
class _Data:
    training: list[HRMExample]
    held_out: list[HRMExample]

    @property
    def puzzles(self) -> int:
        """Rows of a table with all of them."""
        return max(example.puzzle_id for example in self.training + self.held_out) + 1

    def on(self, network: HRM) -> tuple[Batch, Batch | None]:
        """Both sets as tensors for `network`, on its device."""
        training, held_out = (
            encode(examples, network.config).to(network.H_init.device) if examples else None
            for examples in (self.training, self.held_out)
        )
        assert training is not None  # noqa: S101 - a file without messages is refused
        return training, held_out


def _settled(
    ctx: click.Context,
    options: Mapping[str, Option],
    device: devices.Device,
    output: Path,
    saved: SavedStep | None,
    checkpoint_dir: Path,
) -> tuple[dict[str, Any], Checkpoint | None]:
    """The options with what they take from elsewhere, and the checkpoint of --init-from."""
    asked = {**options, "forward_dtype": forward_dtype(options, device)}
    if saved is not None:
        mend = "leave it out, or start anew in another folder"
        inherit(ctx, asked, saved.record.options, f"the run in {output}", mend)
        return asked, None
    if options["init_from"] is None:
        return asked, None
    base = load_checkpoint(find_checkpoint(str(options["init_from"]), checkpoint_dir))
    inherit(ctx, asked, sizes_of(base), base.name, "leave it out")
    return asked, base


def _record(data_path: Path, asked: Mapping[str, Any], saved: SavedStep | None) -> RunRecord:
    """Of this run: the saved one, which has to be of the same files, or a new one."""
    held_out = asked["held_out"]
    record = RunRecord(
        options=dict(asked),
        data_sha256=_sha256(data_path),
        held_out_sha256=None if held_out is None else _sha256(Path(held_out)),
    )
    if saved is None:
        return record
    for path, before, now in (
        (data_path, saved.record.data_sha256, record.data_sha256),
        (held_out, saved.record.held_out_sha256, record.held_out_sha256),
    ):
        if before != now:
            raise SQEHRMError(
                f"{path}: not the file that the run was started with: give that one, or train "
                "anew with --init-from"
            )
    return saved.record


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SQEHRMError(f"{path}: cannot be read: {error.strerror}") from None


def _read(data_path: Path, asked: Mapping[str, Any], converter: Converter) -> _Data:
    examples = read_examples(data_path, converter)
    if asked["held_out"] is not None:
        hashes = {hash_of(example) for example in examples}
        return _Data(examples, read_examples(Path(asked["held_out"]), converter, excluded=hashes))
    if asked["held_out_share"] is not None:
        return _Data(*split(examples, asked["held_out_share"], asked["seed"]))
    return _Data(examples, [])


def _network(
    asked: Mapping[str, Any], data: _Data, source: Checkpoint | None, *, resumed: bool
) -> HRM:
    """A new network, or that of `source`; one that is resumed has its table's size already."""
    dtype = getattr(torch, asked["forward_dtype"])
    if source is not None:
        rows = 0 if resumed else max(asked["puzzle_space"], data.puzzles)
        config, state = enlarged(source, rows)
        config = config.model_copy(update={"halt_exploration_prob": asked["exploration"]})
        network = HRM(config, dtype)
        network.load_state_dict(state)
        return network
    try:
        config = HRMConfig(
            hidden_size=asked["hidden_size"],
            puzzle_emb_ndim=asked["hidden_size"],
            num_heads=asked["num_heads"],
            H_layers=asked["layers"],
            L_layers=asked["layers"],
            num_puzzle_identifiers=max(asked["puzzle_space"], data.puzzles),
            halt_exploration_prob=asked["exploration"],
        )
    except ValidationError as error:
        raise click.UsageError(f"--hidden-size and --num-heads: {first_problem(error)}") from None
    return HRM(config, dtype)


def _start_line(network: HRM, data: _Data, device: devices.Device) -> str:
    held_out = f", {len(data.held_out)} held out" if data.held_out else ""
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    dtype = str(network.forward_dtype).removeprefix("torch.")
    return (
        f"{len(data.training)} examples{held_out}; {numbers:,} numbers in the network; "
        f"{dtype} activations on {device.name}, measured in float32"
    )


def _about(record: RunRecord, recipe: TrainingConfig, device: devices.Device) -> dict[str, Any]:
    hardware = platform.processor() or platform.machine()
    if device.is_cuda:
        hardware = torch.cuda.get_device_name(device.torch_name)
    chosen = ("exploration", "forward_dtype", "measure_every", "init_from")
    return {
        "command": shlex.join(["sqe-hrm", *sys.argv[1:]]),
        "data_sha256": record.data_sha256,
        "held_out": record.options["held_out"] or record.options["held_out_share"],
        "held_out_sha256": record.held_out_sha256,
        "recipe": {**recipe.model_dump(), **{name: record.options[name] for name in chosen}},
        "hardware": hardware,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
