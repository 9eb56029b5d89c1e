"""The figures that a checkpoint records of itself, from a measurement of its messages.

Knows measurements and the form in which they are recorded; nothing of how a set of messages came
about.
"""

from datetime import UTC, datetime
from importlib import metadata

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.figures import RecordedFigures, RecordedRule, RecordedSet
from hrm.evaluation.measurement import EachUnderBothRules, ExampleFigures

_DISTRIBUTION = "sqe-hrm-worker"


def recorded_figures(
    checkpoint: Checkpoint,
    accepted: EachUnderBothRules,
    held_out: EachUnderBothRules | None = None,
) -> RecordedFigures:
    """The figures to record, as of today.

    Args:
        checkpoint: The checkpoint that was measured, with its own number of ACT steps.
        accepted: Figures of all accepted pairs that it was trained on (at least one).
        held_out: Figures of messages that it was never trained on.
    """
    return RecordedFigures(
        digest=checkpoint.digest,
        halt_max_steps=checkpoint.config.halt_max_steps,
        date=datetime.now(UTC).date(),
        version=version(),
        accepted=_set(accepted),
        held_out=None if held_out is None else _set(held_out),
    )


def _set(rules: EachUnderBothRules) -> RecordedSet:
    targets = rules.q.correctness.targets
    return RecordedSet(
        messages=len(targets),
        target_tokens=int(targets.sum()),
        max_steps=_rule(rules.max_steps),
        q=_rule(rules.q),
    )


def _rule(figures: ExampleFigures) -> RecordedRule:
    return RecordedRule(
        solved=int(figures.correctness.solved.sum()),
        tokens_right=int(figures.correctness.correct.sum()),
        q_right=int(figures.q_right.sum()),
        mean_act_steps=float(figures.act_steps.double().mean()),
    )


def version() -> str:
    """Release of this project that measures."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        # Run from a folder that was never installed.
        return "unknown"
