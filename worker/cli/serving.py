"""The evaluator of a worker: the checkpoint or ensemble that its options name.

Knows checkpoints, ensembles and engines; nothing of Redis. Imports torch, so it is imported only
after the device is pinned.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from hrm.checkpoint import Checkpoint, open_checkpoint
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble, load_members
from hrm.ensemble.stacking import EnsembleError, read_stacking
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.known import known_pairs
from hrm.evaluation.precision import dtypes_on
from hrm.inference.config import Inference
from hrm.inference.dtypes import Dtypes
from schemas import HaltedBy
from worker.broker.contract import CANARY_AGENT
from worker.evaluator import Model
from worker.process import devices
from worker.settings import Settings

logger = logging.getLogger(__name__)

CUDA_SLOTS = 64

CPU_SLOTS = 4
"""For each thread. More rows are not computed faster on a CPU; a GPU wants many."""


@dataclass(frozen=True)
class Serving:
    """Everything that decides how a worker answers.

    Args:
        settings: Name the checkpoint, unless `members` does, and the halting rule.
        device: The pinned device.
        members: Checkpoints that answer as one; none for the settings' single checkpoint.
        weights: One for each member; none to weigh them equally.
        strategy: How the members' predictions are combined.
        combiner: File of the stacking combiner, for that strategy.
        max_steps: ACT steps per example, or None for each checkpoint's own.
        dtype: Name of the activations' data type, or `auto`.
    """

    settings: Settings
    device: devices.Device
    members: tuple[str, ...]
    weights: tuple[float, ...]
    strategy: str
    combiner: Path | None
    max_steps: int | None
    dtype: str

    def read_model(self, worker: str, checkpoint: str | None = None) -> Model:
        """Read and check what is served.

        Args:
            worker: The name in the verdicts.
            checkpoint: Name or path of another checkpoint than the settings'.

        Raises:
            CheckpointError: The checkpoint, or a member of the ensemble, cannot be used.
            EnsembleError: The members do not go together, or `checkpoint` is to take their place.
        """
        # The engine's threads are all that the cores are for. A second set, which torch would start
        # here to load a checkpoint, makes OpenMP put threads to sleep between operations.
        threads = self._threads
        torch.set_num_threads(1)
        model = self._model(checkpoint)
        records = " ".join(each.records_digest() for each in _members(model))
        opened = partial(self._open, model, worker, threads)
        return Model(model.name, model.digest, records, opened)

    @cached_property
    def _threads(self) -> int:
        """CPU threads of an engine. What torch says of them is its default only at first."""
        return self.settings.threads or torch.get_num_threads()

    @cached_property
    def _dtypes(self) -> Dtypes:
        """Chooses a dtype for each model that is served."""
        return dtypes_on(self.device.torch_name, self.dtype)

    def _open(self, model: Checkpoint | Ensemble, worker: str, threads: int) -> Evaluator:
        """Load a model onto the device, and start to answer."""
        members = _members(model)
        inference = self._inference(threads, self._rule(model), members)
        device = self.device.torch_name
        known = known_pairs(members, inference.halting, inference.max_steps)
        if not known:
            logger.info(
                "no self-test: checkpoint %s does not say which pairs it solves in this way",
                model.name,
            )
        if isinstance(model, Ensemble):
            predictor = model.open(inference, device)
        else:
            predictor = inference.open(model, device)
        evaluator = Evaluator(
            model,
            predictor,
            device=self.device.name,
            worker=worker,
            max_message_bytes=self.settings.max_message_bytes,
            known=known,
            tester=CANARY_AGENT,
        )
        if evaluator.recorded_rate is None:
            _warn_of_no_baseline(model, inference)
        return evaluator

    def _model(self, checkpoint: str | None) -> Checkpoint | Ensemble:
        folder = self.settings.checkpoint_dir
        if not self.members:
            return open_checkpoint(checkpoint or self.settings.checkpoint, folder)
        if checkpoint is not None:
            raise EnsembleError(
                "this worker serves an ensemble: restart it to serve a single checkpoint"
            )
        return Ensemble(
            load_members(self.members, folder),
            Strategy(self.strategy),
            self.weights,
            None if self.combiner is None else read_stacking(self.combiner),
        )

    def _rule(self, model: Checkpoint | Ensemble) -> HaltedBy:
        """The halting rule for `model`; the log says why it was chosen."""
        if self.settings.halting != "auto":
            return HaltedBy(self.settings.halting)
        evidence = model.halting_evidence(self.max_steps)
        logger.info("halting auto chose %s", evidence.reason)
        return evidence.rule

    def _inference(
        self, threads: int, halting: HaltedBy, members: Sequence[Checkpoint]
    ) -> Inference:
        default = CUDA_SLOTS if self.device.is_cuda else CPU_SLOTS * threads
        return Inference(
            slots=self.settings.slots or default,
            halting=halting,
            max_steps=self.max_steps,
            dtype=self._dtypes.of(members, self.max_steps),
            threads=threads,
            cached_predictions=self.settings.cached_predictions,
        )


def _members(model: Checkpoint | Ensemble) -> Sequence[Checkpoint]:
    return model.members if isinstance(model, Ensemble) else [model]


def _warn_of_no_baseline(model: Checkpoint | Ensemble, inference: Inference) -> None:
    """Log that nothing can tell how many known messages this model should solve, and the fix."""
    if isinstance(model, Ensemble):
        fix = "none is recorded of ensembles; alerts need workers that serve a single checkpoint"
    elif model.figures is None:
        fix = "sqe-hrm checkpoint record measures it"
    else:
        fix = f"it was measured with --max-steps {model.figures.halt_max_steps}"
    logger.warning(
        "no alert compares the live solve rate of %s: it has no recorded one under %s: %s",
        *(model.name, inference.halting, fix),
    )
