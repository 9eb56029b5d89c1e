"""Pairs and figures of a checkpoint that was trained before checkpoints recorded them.

Knows a checkpoint and the file that it was trained on; nothing of runs or of terminals.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from hrm.checkpoint import Checkpoint, TrainingRecord
from hrm.checkpoint.figures import RecordedFigures
from hrm.checkpoint.pairs import AcceptedPairs, first_of_each, with_answer_rows
from hrm.data.conversion import Converter
from hrm.evaluation.measurement import measure_both_rules
from hrm.evaluation.recorded import recorded_figures
from hrm.model.batch import encode_messages
from hrm.training.examples import recorded_examples
from schemas import HaltedBy


class Measured(NamedTuple):
    """A checkpoint's figures and pairs, measured on the messages that it was trained on."""

    pairs: AcceptedPairs
    """The messages, and which of them it solves."""
    figures: RecordedFigures


def measure_accepted(
    checkpoint: Checkpoint,
    record: TrainingRecord,
    path: Path,
    device: torch.device | str = "cpu",
) -> Measured:
    """Measure a checkpoint on the messages that it was trained on, in float32, under both rules.

    Args:
        checkpoint: The checkpoint.
        record: Its training record.
        path: JSONL file of exactly these messages.
        device: Where to compute, as torch calls it.

    Raises:
        TrainingDataError: The messages are not the recorded ones, or cannot be read.
    """
    converter = Converter(checkpoint.conversion)
    examples = recorded_examples(record, path, converter)
    in_rows = with_answer_rows(examples, record.answers)
    messages = encode_messages([converter.parts(each) for each in in_rows], checkpoint.config)
    each = measure_both_rules(checkpoint.build(device=device), messages.to(device))
    distinct = torch.tensor(first_of_each(examples), dtype=torch.int64)
    solved = {
        HaltedBy.MAX_STEPS: each.max_steps.correctness.solved.cpu()[distinct],
        HaltedBy.Q: each.q.correctness.solved.cpu()[distinct],
    }
    pairs = AcceptedPairs.of(examples, checkpoint.config.vocab_size)
    return Measured(pairs.measured(solved, checkpoint.digest), recorded_figures(checkpoint, each))
