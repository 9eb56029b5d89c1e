"""The evaluator of a command that evaluates files: one checkpoint, as its options say.

Knows checkpoints and engines; nothing of what is evaluated. Imports torch, so it is imported only
by commands that need it anyway.
"""

import os
import socket

from hrm.checkpoint import open_checkpoint
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.precision import dtypes_on
from hrm.inference.config import Inference
from schemas import HaltedBy
from worker.cli.options import batch_size_on, use_device
from worker.settings import Settings


def open_evaluator(
    settings: Settings,
    *,
    batch_size: int | None,
    halting: str,
    max_steps: int | None,
    dtype: str,
    cached_predictions: int = 0,
) -> Evaluator:
    """Pin the device of `settings`, load their checkpoint, and start to answer.

    Args:
        settings: Name the checkpoint and the device.
        batch_size: Examples computed together; None for the device's default.
        halting: When an example is done.
        max_steps: ACT steps per example; None for the checkpoint's own.
        dtype: Name of the activations' data type, or `auto`.
        cached_predictions: Number of predictions to keep for equal examples.

    Raises:
        click.UsageError: The device cannot be used.
        CheckpointError: The checkpoint cannot be used.
    """
    device = use_device(settings)
    checkpoint = open_checkpoint(settings.checkpoint, settings.checkpoint_dir)
    inference = Inference(
        slots=batch_size_on(device, batch_size),
        halting=HaltedBy(halting),
        max_steps=max_steps,
        dtype=dtypes_on(device.torch_name, dtype).of([checkpoint], max_steps),
        cached_predictions=cached_predictions,
    )
    return Evaluator(
        checkpoint,
        inference.open(checkpoint, device.torch_name),
        device=device.torch_name,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        max_message_bytes=settings.max_message_bytes,
    )
