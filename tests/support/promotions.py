"""Checkpoints that solve the pairs that they hold, without any training."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from hrm.checkpoint import load_checkpoint, pair_hash, save_checkpoint
from hrm.checkpoint.checkpoint import Checkpoint
from hrm.checkpoint.pairs import AcceptedExample, AcceptedPairs
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.texts import TextHashes
from hrm.inference.engine import Engine
from hrm.inference.prediction import submit_when_room
from hrm.kernels import accelerate
from hrm.model.network import HRM
from hrm.training.examples import training_record
from schemas import HaltedBy, HRMExample
from tests.support.checkpoints import SHA256, TINY, state_of

ONE_STEP = TINY.model_copy(update={"halt_max_steps": 1})
"""A network that answers alike under both halting rules."""

EARLY = state_of(ONE_STEP)
LATE = {key: tensor.flip(0) for key, tensor in EARLY.items()}
"""Weights that answer otherwise."""


def solved_by(state: Mapping[str, Tensor], count: int, start: int = 0) -> list[HRMExample]:
    """At most `count` different prompts, each with the target that these weights predict."""
    converter = Converter(SHA256)
    asked = [
        converter.convert(f"run test {number}", "a b c d e", number % 5)
        for number in range(start, start + count)
    ]
    # By the engine itself: kernels round otherwise than the plain loop, and an untrained network
    # makes another token of that.
    network = HRM(ONE_STEP)
    network.load_state_dict(dict(state))
    with closing(Engine([accelerate(network.eval())], slots=4)) as engine:
        answers = [submit_when_room(engine, each, urgent=False) for each in asked]
        found = {
            (each.puzzle_id, each.input_sequence): each.model_copy(
                update={"target_sequence": answer.result().tokens, "solution_steps": ()}
            )
            for each, answer in zip(asked, answers, strict=True)
        }
    return list(found.values())


def saved_with(
    folder: Path,
    state: Mapping[str, Tensor],
    held: Sequence[HRMExample],
    conversion: ConversionConfig = SHA256,
    *,
    recorded: bool = False,
) -> Checkpoint:
    """A checkpoint of `ONE_STEP` in `folder` that holds these pairs.

    With `recorded` it says that it solves them all, true or not.
    """
    accepted = [
        AcceptedExample(
            line=number,
            example=each,
            pair=pair_hash(each.puzzle_id, each.input_sequence),
            texts=TextHashes.of(f"prompt {number}", f"completion {number}"),
        )
        for number, each in enumerate(held, 1)
    ]
    pairs = AcceptedPairs.of(accepted, ONE_STEP.vocab_size)
    save_checkpoint(folder, state, ONE_STEP, conversion, training_record(accepted), pairs)
    saved = load_checkpoint(folder)
    if recorded:
        flags = dict.fromkeys(HaltedBy, torch.ones(len(pairs)))
        pairs.measured(flags, saved.digest).write(folder / ACCEPTED_PAIRS)
    return saved
