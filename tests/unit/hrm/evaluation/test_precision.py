"""hrm.evaluation.precision: verdicts in coarser dtypes, compared with those in float32."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import Checkpoint, load_checkpoint
from hrm.checkpoint.precision import (
    NOTHING,
    PRECISION,
    Differences,
    RecordedPrecision,
    read_precision,
    write_precision,
)
from hrm.evaluation.precision import PrecisionError, changed_targets, measure_precision
from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from hrm.kernels.compiler import SWITCH
from tests.support.promotions import EARLY, LATE, saved_with, solved_by


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """One whose weights solve its pairs under both rules."""
    return saved_with(tmp_path / "own", EARLY, solved_by(EARLY, 6))


def wrong_in(
    dtype: torch.dtype, other: Checkpoint, engine: Callable[..., Engine] = Inference.engine
) -> Callable[..., Engine]:
    """`Inference.engine` that in `dtype` computes with the weights of `other`."""

    def made(self: Inference, checkpoints: list[Checkpoint], device: str) -> Engine:
        return engine(self, [other] if self.dtype == dtype else checkpoints, device)

    return made


def test_equal_answers_differ_in_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Inference.network
    monkeypatch.setattr(
        Inference, "network", lambda self, *a: made(replace(self, dtype=torch.float32), *a)
    )
    found = measure_precision(checkpoint, [torch.bfloat16])
    assert found.checks[0].changes_nothing
    assert found.summary(found.checks[0]).startswith(f"{NOTHING} (6 pairs and ")
    assert (found.digest, found.pairs) == (checkpoint.digest, 6)
    assert found.changed > 0
    assert [each.dtype for each in found.checks] == ["bfloat16"]


def test_other_answers_are_counted(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = saved_with(tmp_path / "other", LATE, solved_by(LATE, 6))
    monkeypatch.setattr(Inference, "engine", wrong_in(torch.int8, other))
    (check,) = measure_precision(checkpoint, [torch.int8]).checks
    for found in (check.max_steps, check.q):
        assert found.predictions == 6
        assert found.verdicts >= 6
        assert found.act_steps == 0
    assert not check.changes_nothing


def test_without_kernels_plain_torch_emulates_int8_and_the_record_says_so(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    (check,) = measure_precision(checkpoint, [torch.int8]).checks
    assert check.computed_by == "plain torch that emulates kernels"


def test_a_checkpoint_without_pairs_has_nothing_to_compare(checkpoint: Checkpoint) -> None:
    (checkpoint.path.parent / "accepted.pairs").unlink()
    with pytest.raises(PrecisionError, match="own holds no accepted pairs: sqe-hrm checkpoint"):
        measure_precision(checkpoint)


def test_a_comparison_may_not_take_longer_than_it_is_allowed(checkpoint: Checkpoint) -> None:
    with pytest.raises(PrecisionError, match="takes too long"):
        measure_precision(checkpoint, seconds=0)


def test_changed_targets_have_one_change_and_are_no_longer_than_allowed() -> None:
    target, other = (2, 4, 5, 6, 7, 3), (2, 8, 9, 3)
    assert changed_targets(target, other, 1, longest=7) == [
        (2, 4, 8, 6, 7, 3),
        (2, 4, 6, 7, 3),
        (2, 4, 6, 5, 7, 3),
        (2, 4, 5, 3),
        (2, 4, 5, 6, 7, 8, 3),
        (2, 8, 9, 3),
    ]
    assert target not in changed_targets(target, target, 0, longest=6)
    assert changed_targets((2, 3), (2, 3), 0, longest=6) == []


def test_patterns_beyond_the_accepted_end_are_counted_apart() -> None:
    counts = {"predictions": 0, "act_steps": 0, "verdicts": 0, "patterns_beyond": 1}
    assert Differences(**counts).none
    for name in ("predictions", "act_steps", "verdicts"):
        assert not Differences(**{**counts, name: 1}).none


def test_a_record_is_bound_to_the_weights_and_goes_with_them(checkpoint: Checkpoint) -> None:
    folder = checkpoint.path.parent
    found = measure_precision(checkpoint, [torch.bfloat16])
    write_precision(folder, found)
    assert load_checkpoint(folder).precision == found
    assert read_precision(folder / PRECISION, "0" * 64) is None
    assert RecordedPrecision.model_validate_json((folder / PRECISION).read_bytes()) == found
    saved_with(folder, LATE, solved_by(LATE, 2))
    assert not (folder / PRECISION).exists()
