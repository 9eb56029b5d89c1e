"""Figures of a checkpoint that was trained before checkpoints recorded them.

Knows a checkpoint and the file that it was trained on; nothing of runs or of terminals.
"""

from pathlib import Path

import torch

from hrm.checkpoint import Checkpoint, TrainingRecord
from hrm.checkpoint.figures import RecordedFigures
from hrm.checkpoint.pairs import with_answer_rows
from hrm.data.conversion import Converter
from hrm.evaluation.measurement import measure_both_rules
from hrm.evaluation.recorded import recorded_figures
from hrm.model.batch import encode_messages
from hrm.training.examples import recorded_examples


def measure_accepted(
    checkpoint: Checkpoint,
    record: TrainingRecord,
    path: Path,
    device: torch.device | str = "cpu",
) -> RecordedFigures:
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
    examples = with_answer_rows(recorded_examples(record, path, converter), record.answers)
    messages = encode_messages([converter.parts(each) for each in examples], checkpoint.config)
    figures = measure_both_rules(checkpoint.build(device=device), messages.to(device))
    return recorded_figures(checkpoint, figures)
