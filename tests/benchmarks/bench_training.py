"""A training step beside the plain one, at full width."""

import os
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch

from hrm.kernels.compiler import SWITCH
from hrm.model.batch import encode
from hrm.training.trainer import Trainer, TrainingConfig
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.setting import (
    DTYPES,
    THREADS,
    Setting,
    dtype_name,
    random_examples,
    random_network,
)

TITLE = "Training step"


def run(setting: Setting) -> str:
    config = setting.config
    rows = [_row(setting, dtype) for dtype in DTYPES]
    return paragraphs(
        f"D {config.hidden_size}, {config.H_layers} + {config.L_layers} layers, random weights, "
        f"batches of {setting.training_batch} examples; both trainings take a step in turn, "
        f"{setting.training_steps} each; examples per second are medians. The plain step computes "
        "every level with torch's own functions, as the reference does. The losses are those of "
        f"the last step. OMP_WAIT_POLICY is {os.environ.get('OMP_WAIT_POLICY', 'not set')}; "
        "`sqe-hrm train` sets it to passive.",
        table(["dtype", "plain", "fast", "fast / plain", "loss plain", "loss fast"], rows),
    )


def _row(setting: Setting, dtype: torch.dtype) -> list[str]:
    torch.set_num_threads(THREADS)
    with patch.dict(os.environ, {SWITCH: "off"}):
        plain = _trainer(setting, dtype)
    fast = _trainer(setting, dtype)
    seconds: dict[Trainer, list[float]] = {plain: [], fast: []}
    losses = {}
    for number in range(1 + setting.training_steps):
        for trainer, own in seconds.items() if number % 2 else reversed(seconds.items()):
            started = perf_counter()
            losses[trainer] = trainer.step().loss
            if number:  # after a step to warm up
                own.append(perf_counter() - started)
    plain_seconds, fast_seconds = median(seconds[plain]), median(seconds[fast])
    return [
        dtype_name(dtype),
        f"{setting.training_batch / plain_seconds:.1f}",
        f"{setting.training_batch / fast_seconds:.1f}",
        f"{plain_seconds / fast_seconds:.2f}",
        f"{losses[plain]:.4f}",
        f"{losses[fast]:.4f}",
    ]


def _trainer(setting: Setting, dtype: torch.dtype) -> Trainer:
    size = setting.training_batch
    examples = encode(random_examples(setting.config, size), setting.config).to(setting.device)
    return Trainer(random_network(setting, dtype), examples, TrainingConfig(batch_size=size))
