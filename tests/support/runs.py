"""Training runs of a tiny network on random tokens."""

from collections.abc import Callable
from pathlib import Path

import torch

from hrm.checkpoint import pair_hash
from hrm.checkpoint.pairs import AcceptedExample, AcceptedPairs
from hrm.data.config import ConversionConfig
from hrm.data.texts import TextHashes
from hrm.model.batch import Batch, Messages
from hrm.model.network import HRM
from hrm.training.examples import training_record
from hrm.training.folder import claim_folder, latest_step
from hrm.training.options import RunPolicy, TrainingOptions
from hrm.training.run import TrainingRun
from hrm.training.state import Provenance, RunRecord
from hrm.training.stop import StopRequest
from hrm.training.trainer import StepReport, Trainer, TrainingConfig
from tests.support.examples import example
from tests.support.networks import tiny

CONFIG = tiny(halt_max_steps=3, halt_exploration_prob=0.5)
RECIPE = TrainingConfig(steps=6, batch_size=3, lr=1e-2, lr_warmup_steps=2)
_INPUTS, _LABELS = torch.randint(12, (2, 5, 8), generator=torch.Generator().manual_seed(1))
EXAMPLES = Batch(_INPUTS, _LABELS, torch.arange(5))
ACCEPTED = [
    AcceptedExample(
        number + 1, each, pair_hash(number, each.input_sequence), TextHashes.of("p", "c")
    )
    for number in range(5)
    for each in [example(number)]
]


def train(
    folder: Path,
    *,
    until: int | None = None,
    resume: bool = False,
    recipe: TrainingConfig = RECIPE,
    save_every: int | None = 1,
    keep: int = 10,
    sample: int = 128,
    every: int = 1,
    stop: StopRequest | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> list[StepReport]:
    """Train to the end, or until the step `until`, and return the reports of the steps."""
    saved = latest_step(folder) if resume else None
    torch.manual_seed(0)
    options = TrainingOptions(**recipe.model_dump(), measure_every=every, measure_sample=sample)
    trainer = Trainer(HRM(CONFIG), EXAMPLES, options.config)
    record = RunRecord(options=options, data_sha256="", held_out_sha256=None)
    if saved is not None:
        record = saved.record
        saved.restore(trainer)
    claim_folder(folder, resume=resume)
    pairs, accepted = training_record(ACCEPTED), AcceptedPairs.of(ACCEPTED, 12)
    run = TrainingRun(
        folder,
        trainer,
        Messages.whole(trainer.examples),
        Provenance(ConversionConfig(), pairs, accepted, range(5), record, {"command": "train"}),
        RunPolicy(save_every=save_every, keep=keep),
        Messages.whole(trainer.examples[:2]),
    )
    reports: list[StepReport] = []

    def stepped(report: StepReport) -> None:
        reports.append(report)
        on_step(report)
        if report.step == until:
            raise KeyboardInterrupt

    try:
        run.train(on_step=stepped, stop=stop)
    except KeyboardInterrupt:
        assert until is not None
    return reports
