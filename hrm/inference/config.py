"""Settings of an engine, and the opening of checkpoints as predictors with these settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hrm.checkpoint import Checkpoint
from hrm.inference.cache import CachedPredictor
from hrm.inference.engine import Engine, Join
from hrm.inference.prediction import Predictor
from hrm.kernels import accelerate
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from schemas import HaltedBy


@dataclass(frozen=True)
class Inference:
    """How examples are answered: the settings of an `Engine` and of a cache before it."""

    slots: int
    halting: HaltedBy = HaltedBy.MAX_STEPS
    max_steps: int | None = None
    dtype: torch.dtype = torch.float32
    """Dtype of activations; int8: of the levels' linear maps alone, if the device can, around
    float32."""
    emulated: bool = False
    """Whether plain torch computes int8, slowly, if the device cannot: to see what it changes."""
    threads: int | None = None
    """Number of CPU threads; None: as many as torch uses."""
    cached_predictions: int = 0
    """Number of predictions kept for equal examples (`CachedPredictor`); 0: no cache."""

    def open(self, checkpoint: Checkpoint, device: torch.device | str) -> Predictor:
        """Load the checkpoint's network onto `device` and start to answer examples with it.

        Raises `DeviceMemoryError` if the device has no room for a single example. The caller closes
        the predictor.
        """
        return self.cached(self.engine([checkpoint], device), checkpoint.config)

    def engine(
        self,
        checkpoints: Sequence[Checkpoint],
        device: torch.device | str,
        *,
        keep_logits: bool = False,
        join: Join | None = None,
    ) -> Engine:
        """Start an engine of the checkpoints' networks on `device`, without a cache.

        Args:
            checkpoints: One, or several that answer as one.
            device: Device of all networks.
            keep_logits: Whether predictions carry their logits.
            join: How the predictions of several checkpoints become one.
        """
        return Engine(
            [self.network(checkpoint, device) for checkpoint in checkpoints],
            slots=self.slots,
            halting=self.halting,
            max_steps=self.max_steps,
            keep_logits=keep_logits,
            join=join,
            threads=self.threads,
        )

    def network(self, checkpoint: Checkpoint, device: torch.device | str) -> HRM:
        """Build the checkpoint's network on `device`, for inference only."""
        int8 = self.dtype == torch.int8
        forward_dtype = torch.float32 if int8 else self.dtype
        network = checkpoint.build(device=device, forward_dtype=forward_dtype)
        return accelerate(network, int8=int8, emulated=self.emulated)

    def cached(self, predictor: Predictor, config: HRMConfig) -> Predictor:
        """Return `predictor`, whose examples fit `config`, behind a cache if there is to be one."""
        if not self.cached_predictions:
            return predictor
        return CachedPredictor(predictor, config, entries=self.cached_predictions)
