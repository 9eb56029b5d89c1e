"""Sets up a training run: data, network and record become a `TrainingRun`.

Knows the parts of `hrm.training` and joins them; nothing of terminals or a command line.
"""

import hashlib
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from hrm.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from hrm.checkpoint.pairs import AcceptedExample, AcceptedPairs, first_of_each
from hrm.checkpoint.record import TrainingRecord
from hrm.checkpoint.registry import CURRENT
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.vocabulary import vocabulary_of
from hrm.model.batch import Messages
from hrm.model.config import HRMConfig, TokenHead
from hrm.model.network import HRM
from hrm.training.converting import new_conversion, with_tasks
from hrm.training.examples import (
    sharing_rows,
    training_record,
)
from hrm.training.folder import claim_folder, latest_step
from hrm.training.messages import RunMessages, read_messages, with_answers
from hrm.training.noise import PromptNoise
from hrm.training.notes import notes_on
from hrm.training.options import OptionsError, RunPolicy, TrainingOptions, check_given
from hrm.training.plan import default_steps
from hrm.training.replay import FURTHER, Parent, forgotten, replayed_examples
from hrm.training.run import TrainingRun
from hrm.training.state import Provenance, RunRecord, SavedStep
from hrm.training.trainer import Trainer, TrainingConfig
from schemas import SQEHRMError, first_problem


def prepare_run(
    data_path: Path,
    output: Path,
    options: TrainingOptions,
    policy: RunPolicy | None = None,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    checkpoint_dir: Path = Path("checkpoints"),
    command: str | None = None,
) -> TrainingRun:
    """Read the data, build or load the network, and claim the folder; then call `train`.

    Seeds torch's global random generator.

    Args:
        data_path: JSONL file of accepted messages.
        output: The run's folder, which becomes a checkpoint of the best weights.
        options: What the steps do. When resuming, the saved options count; those that are given
            must be equal to them.
        policy: When to give up and what to keep.
        device: Where to train, as torch calls it.
        resume: Go on from the latest saved step in `output`.
        checkpoint_dir: Folder in which `options.init_from` is looked up.
        command: What started the run, for `measured.json`.

    Raises:
        OptionsError: The options contradict each other, the saved run, or the base checkpoint.
        TrainingDataError: The data cannot be trained on. If lines contradict each other, it is a
            `ContradictionError`.
        CheckpointError: A checkpoint cannot be read, or the folder cannot be written.
    """
    policy = policy or RunPolicy()
    saved = latest_step(output) if resume else None
    options, base = _settled(options, torch.device(device), output, saved, checkpoint_dir)
    _check_together(options, policy)
    record = _record(data_path, options, saved)
    source = base if saved is None else saved.checkpoint
    resumed = saved is not None
    replayed = _replayed(options, base, saved)
    conversion = new_conversion(options) if source is None else source.conversion
    if not resumed:
        conversion = with_tasks(conversion, data_path, options, source, replayed)
        options = options.model_copy(update={"puzzle_space": conversion.puzzle_space})
    converter = Converter(conversion)
    data = read_messages(data_path, options, converter, replayed, resumed=resumed)
    data = with_answers(data, data_path, conversion, source, resumed=resumed)
    torch.manual_seed(options.seed)
    network = _network(options, conversion, data, source, resumed=resumed).to(device)
    training, held_out = data.on(network, converter)
    replayed_parts = int((training.message < data.replayed).sum())
    if not resumed:
        options = _planned(options, len(training.parts), network)
    record = record.model_copy(update={"options": options})
    claim_folder(output, resume=resume)
    noise = _noise(options, training, converter)
    trainer = Trainer(network, training.parts, options.config, noise, replayed_parts)
    if saved is not None:
        saved.restore(trainer)
    vocabulary_size = converter.tokenizer.vocabulary.size
    pairs = training_record(
        data.training,
        data.answers,
        vocabulary_size=vocabulary_size,
        prompt_noise=options.prompt_noise,
    )
    if base is not None:
        record = record.model_copy(update={"parent": _parent(base, data, pairs)})
    about = _about(record, data, pairs, conversion, torch.device(device), command)
    accepted = AcceptedPairs.of(data.training, vocabulary_size)
    distinct = first_of_each(data.training)
    provenance = Provenance(converter.config, pairs, accepted, distinct, record, about)
    notes = notes_on(data.training, pairs, conversion, options.prompt_noise)
    return TrainingRun(output, trainer, training, provenance, policy, held_out, notes)


def _replayed(
    options: TrainingOptions, base: Checkpoint | None, saved: SavedStep | None
) -> list[AcceptedExample]:
    """The accepted pairs to train on beside the new ones: the base's, or the saved step's.

    A resumed run needs no base: its steps hold what was replayed.
    """
    if saved is not None:
        parent = saved.record.parent
        if parent is None or not parent.replayed:
            return []
        pairs = saved.checkpoint.accepted_pairs()
        if pairs is None:
            raise CheckpointError(
                f"{saved.checkpoint.path.parent}: lacks {ACCEPTED_PAIRS}, which the run needs to "
                "go on: restore it, or start anew"
            )
        return list(islice(pairs, parent.replayed))
    if base is None or options.forget:
        return []
    return replayed_examples(base, str(options.init_from))


def _parent(base: Checkpoint, data: RunMessages, pairs: TrainingRecord) -> Parent:
    return Parent(
        name=base.name,
        digest=base.digest,
        replayed=data.replayed,
        forgotten=forgotten(base, pairs),
    )


def _settled(
    options: TrainingOptions,
    device: torch.device,
    output: Path,
    saved: SavedStep | None,
    checkpoint_dir: Path,
) -> tuple[TrainingOptions, Checkpoint | None]:
    """The options with everything they inherit, and the checkpoint of `init_from`."""
    dtype = options.forward_dtype
    settled = options.model_copy(
        update={"forward_dtype": _fast_dtype(device) if dtype == "auto" else dtype}
    )
    given = {name: getattr(settled, name) for name in options.model_fields_set}
    if saved is not None:
        check_given(given, saved.record.options.model_dump(), f"the run in {output}")
        return saved.record.options, None
    if settled.init_from is None:
        return settled, None
    base = open_checkpoint(settled.init_from, checkpoint_dir)
    inherited: dict[str, Any] = dict(_sizes_of(base))
    check_given(given, inherited, base.name, "leave it out")
    if not settled.forget:
        inherited |= {name: value for name, value in FURTHER.items() if name not in given}
    variations = base.training and base.training.accepted and base.training.accepted.variations
    if variations and not settled.forget and "prompt_noise" not in given:
        # Otherwise the variations that the base learned would be forgotten.
        inherited["prompt_noise"] = variations.changes
    if settled.init_from == CURRENT:
        # What is current changes; the record of the run says what it started with.
        inherited["init_from"] = base.name
    return settled.model_copy(update=inherited), base


def _check_together(options: TrainingOptions, policy: RunPolicy) -> None:
    """Raise `OptionsError` for options that exclude each other."""
    if options.forget and options.init_from is None:
        raise OptionsError(["forget"], ": there is nothing to forget without --init-from")
    if options.held_out is not None and options.held_out_share is not None:
        raise OptionsError(["held_out", "held_out_share"], ": give one of them")
    every = policy.save_every
    if every is not None and every % options.measure_every:
        raise OptionsError(
            ["save_every"],
            f" {every}: each saved step is measured, so give a multiple of the steps between two "
            f"measurements, {options.measure_every}",
        )


def _fast_dtype(device: torch.device) -> str:
    """`bfloat16` if it saves time on `device`, which it does not where it is emulated."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Releases of torch that cannot tell get what is right everywhere.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bfloat16" if fast else "float32"


def _sizes_of(base: Checkpoint) -> dict[str, int | str]:
    """The options that a run takes from the checkpoint it starts with."""
    config = base.config
    same = config.H_layers == config.L_layers
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "layers": config.H_layers if same else f"{config.H_layers} and {config.L_layers}",
        "puzzle_space": base.conversion.puzzle_space,
        "conversion": base.conversion.version,
        "hashed_tokens": base.conversion.hashed_tokens,
        "case_sensitive": base.conversion.case_sensitive,
    }


def _record(data_path: Path, options: TrainingOptions, saved: SavedStep | None) -> RunRecord:
    """The run's record: the saved one when resuming (its files must be unchanged), or a new one."""
    held_out = options.held_out
    record = RunRecord(
        options=options,
        data_sha256=_sha256(data_path),
        held_out_sha256=None if held_out is None else _sha256(held_out),
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


def _network(
    options: TrainingOptions,
    conversion: ConversionConfig,
    data: RunMessages,
    source: Checkpoint | None,
    *,
    resumed: bool,
) -> HRM:
    """A new network, or that of `source`. When resuming, its puzzle table has its size already."""
    dtype = getattr(torch, options.forward_dtype)
    if source is not None:
        rows = 0 if resumed else max(conversion.puzzle_space, data.puzzles)
        config, state = enlarged(source, rows)
        config = config.model_copy(update={"halt_exploration_prob": options.exploration})
        network = HRM(config, dtype)
        network.load_state_dict(state)
        return network
    try:
        config = HRMConfig(
            vocab_size=vocabulary_of(conversion).size,
            token_head=TokenHead.STABLEMAX if options.conversion == 1 else TokenHead.SOFTMAX,
            hidden_size=options.hidden_size,
            puzzle_emb_ndim=options.hidden_size,
            num_heads=options.num_heads,
            H_layers=options.layers,
            L_layers=options.layers,
            num_puzzle_identifiers=max(conversion.puzzle_space, data.puzzles),
            halt_exploration_prob=options.exploration,
        )
    except ValidationError as error:
        raise OptionsError(["hidden_size", "num_heads"], f": {first_problem(error)}") from None
    return HRM(config, dtype)


def enlarged(checkpoint: Checkpoint, rows: int) -> tuple[HRMConfig, dict[str, Tensor]]:
    """Configuration and weights of `checkpoint` with room for `rows` puzzles; new rows are zero."""
    config, state = checkpoint.config, dict(checkpoint.state)
    missing = rows - config.num_puzzle_identifiers
    if missing <= 0 or not config.puzzle_emb_ndim:
        return config, state
    state["puzzle_emb.weights"] = F.pad(state["puzzle_emb.weights"], (0, 0, 0, missing))
    return config.model_copy(update={"num_puzzle_identifiers": rows}), state


def _planned(options: TrainingOptions, examples: int, network: HRM) -> TrainingOptions:
    """The options with the number of steps, if nobody gave it."""
    if options.steps is not None:
        return options
    steps = default_steps(
        examples,
        options.batch_size,
        network.config.halt_max_steps,
        noise=options.prompt_noise > 0,
    )
    return options.model_copy(update={"steps": steps})


def _noise(
    options: TrainingOptions, training: Messages, converter: Converter
) -> PromptNoise | None:
    if not options.prompt_noise:
        return None
    return PromptNoise(
        training.parts,
        converter.tokenizer.vocabulary,
        changes=options.prompt_noise,
        foreign_share=options.foreign_share,
    )


def _about(
    record: RunRecord,
    data: RunMessages,
    pairs: TrainingRecord,
    conversion: ConversionConfig,
    device: torch.device,
    command: str | None,
) -> dict[str, Any]:
    """The facts about the run that `measured.json` holds beside the figures."""
    options = record.options
    hardware = platform.processor() or platform.machine()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    recipe = {*TrainingConfig.model_fields, "exploration", "forward_dtype", "measure_every"}
    recipe |= {"measure_sample"}
    return {
        "command": command,
        "data_sha256": record.data_sha256,
        "parent": None if record.parent is None else record.parent.model_dump(),
        "new_messages": len(data.training) - data.replayed,
        "contradictions": options.contradictions,
        "lines_left_out": data.left_out,
        "further_answers": data.further_answers,
        "truncated_prompts": sum(each.unread[0] > 0 for each in data.training),
        "truncated_completions": sum(each.unread[1] > 0 for each in data.training),
        "puzzle_space": conversion.puzzle_space,
        "prompts_sharing_rows": sharing_rows(data.training),
        "tasks": len(conversion.tasks),
        "tasks_found": sum(bool(task.template) for task in conversion.tasks),
        "varied_prompts": pairs.varied_prompts,
        "prompts": len(pairs.pair_hashes),
        "held_out": options.held_out_share if options.held_out is None else str(options.held_out),
        "held_out_sha256": record.held_out_sha256,
        "recipe": options.model_dump(mode="json", include={*recipe, "init_from"}),
        "hardware": hardware,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
