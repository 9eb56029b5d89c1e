"""How checkpoints answer: the settings of an engine, and networks made ready for one."""

from dataclasses import dataclass

import torch

from hrm.checkpoint import Checkpoint
from hrm.inference.cache import CachedPredictor
from hrm.inference.prediction import Predictor
from hrm.kernels import accelerate, fastest_dtype
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from schemas import HaltedBy


@dataclass(frozen=True)
class Inference:
    """How the engine of an evaluator works: see `Engine`."""

    slots: int
    halting: HaltedBy = HaltedBy.MAX_STEPS
    max_steps: int | None = None
    forward_dtype: torch.dtype = torch.float32
    threads: int | None = None
    """Of the CPU; None: as many as torch uses."""
    cached_predictions: int = 0
    """Predictions that are kept for equal examples: see `CachedPredictor`. 0: none."""

    def network(self, checkpoint: Checkpoint, device: torch.device | str) -> HRM:
        """The checkpoint's network on `device`, for inference only."""
        return accelerate(checkpoint.build(device=device, forward_dtype=self.forward_dtype))

    def cached(self, predictor: Predictor, config: HRMConfig) -> Predictor:
        """`predictor`, which takes what fits `config`, with the cache before it that is set."""
        if not self.cached_predictions:
            return predictor
        return CachedPredictor(predictor, config, entries=self.cached_predictions)


def dtype_of(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype that torch calls `name`; for `auto`, the fastest on `device`."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    return fastest_dtype(device)
