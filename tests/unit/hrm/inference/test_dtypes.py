"""hrm.inference.dtypes: auto takes int8 if it is faster and changes nothing."""

import logging
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from hrm.checkpoint import Checkpoint, load_checkpoint
from hrm.checkpoint.precision import Differences, PrecisionCheck, RecordedPrecision
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.precision import PrecisionError, dtypes_on, measure_precision
from hrm.inference.config import Inference
from hrm.inference.dtypes import LOAD_SECONDS, Dtypes
from hrm.kernels import Gain, fastest_dtype, int8_gain
from hrm.kernels import __name__ as kernels
from hrm.kernels.compiler import SWITCH, Kernels
from hrm.kernels.compiler import kernels as built
from hrm.kernels.cpu import has_level
from hrm.model.config import HRMConfig
from schemas import HaltedBy, HRMExample
from tests.support.promotions import EARLY, saved_with, solved_by

SHIPPED = Path(__file__).parents[4] / "checkpoints"

SAME = Differences(predictions=0, act_steps=0, verdicts=0, patterns_beyond=3)


def precision(
    digest: str, found: Differences = SAME, dtype: str = "int8", by: str = "C++"
) -> RecordedPrecision:
    check = PrecisionCheck.model_validate(
        {
            "dtype": dtype,
            "computed_by": by,
            "date": date(2026, 11, 30),
            "version": "0",
            "max_steps": SAME,
            "q": found,
        }
    )
    return RecordedPrecision(digest=digest, halt_max_steps=1, pairs=4, changed=9, checks=(check,))


@pytest.fixture(scope="module")
def held() -> list[HRMExample]:
    return solved_by(EARLY, 4)


@pytest.fixture
def checkpoint(tmp_path: Path, held: list[HRMExample]) -> Checkpoint:
    """A checkpoint that does not record its precision."""
    return saved_with(tmp_path / "own", EARLY, held)


def never(checkpoint: Checkpoint, seconds: float) -> NoReturn:
    raise AssertionError(f"{checkpoint.name} was compared for {seconds} s")


def gain(ratio: float | None) -> Gain:
    if ratio is None:
        return Gain(enough=False, reason="this processor has no products of int8")
    return Gain(enough=ratio >= 1.2, reason=f"{ratio} times as fast")


def dtypes(
    name: str = "auto",
    compare: object = never,
    ratio: float | None = 2.0,
    usual: torch.dtype = torch.bfloat16,
) -> Dtypes:
    """A choice on a machine of which everything is given."""
    return Dtypes(
        name,
        "cpu",
        compare,  # type: ignore[arg-type]
        usual=lambda _: usual,
        gain=lambda *_: gain(ratio),
    )


def test_a_dtype_that_is_named_is_taken_whatever_is_recorded(checkpoint: Checkpoint) -> None:
    for name in ("float32", "bfloat16", "int8"):
        assert dtypes(name, ratio=None).of([checkpoint]) == getattr(torch, name)


@pytest.mark.parametrize("by", ["C++ (g++ 12.2.0)", "plain torch that emulates kernels"])
def test_auto_takes_int8_if_it_is_faster_and_the_record_says_that_nothing_changes(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    caplog.set_level(logging.INFO)
    recorded = replace(checkpoint, precision=precision(checkpoint.digest, by=by))
    for max_steps in (None, 1):
        assert dtypes().of([recorded], max_steps) == torch.int8
    assert caplog.messages[0] == (
        "dtype auto chose int8: 2.0 times as fast; no prediction, halting step or verdict changes; "
        "of completions longer than accepted ones, 3 fail with another pattern (4 pairs and 9 "
        f"changed completions, by {by})"
    )


@pytest.mark.parametrize("usual", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changed", ["predictions", "act_steps", "verdicts"])
def test_auto_stays_if_the_record_says_that_something_changes(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, usual: torch.dtype, changed: str
) -> None:
    caplog.set_level(logging.INFO)
    found = SAME.model_copy(update={changed: 1})
    recorded = replace(checkpoint, precision=precision(checkpoint.digest, found))
    assert dtypes(usual=usual).of([recorded]) == usual
    (line,) = caplog.messages
    assert line.startswith(f"dtype auto stays with {str(usual)[6:]}, not int8: under q ")
    assert "1 " in line


@pytest.mark.parametrize("ratio", [None, 1.1])
@pytest.mark.parametrize("usual", [torch.float32, torch.bfloat16])
def test_auto_stays_on_a_machine_that_is_hardly_faster(
    checkpoint: Checkpoint,
    caplog: pytest.LogCaptureFixture,
    ratio: float | None,
    usual: torch.dtype,
) -> None:
    caplog.set_level(logging.INFO)
    recorded = replace(checkpoint, precision=precision(checkpoint.digest))
    for each in (recorded, checkpoint):
        assert dtypes(ratio=ratio, usual=usual).of([each]) == usual
        assert caplog.messages[-1].endswith(f", not int8: {gain(ratio).reason}")


def test_auto_compares_a_checkpoint_that_has_no_record_and_leaves_its_folder_as_it_is(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = sorted(checkpoint.path.parent.iterdir())
    other = replace(checkpoint, precision=precision(checkpoint.digest, dtype="bfloat16"))
    asked: list[float] = []

    def compare(each: Checkpoint, seconds: float) -> RecordedPrecision:
        asked.append(seconds)
        return precision(each.digest)

    for each in (checkpoint, other):
        assert dtypes(compare=compare).of([each]) == torch.int8
    assert asked == [LOAD_SECONDS, LOAD_SECONDS]
    assert caplog.messages[0].startswith(
        "checkpoint own does not record what int8 changes: compared with float32 in "
    )
    assert sorted(checkpoint.path.parent.iterdir()) == files
    changed = precision("", SAME.model_copy(update={"predictions": 2}))
    assert dtypes(compare=lambda *_: changed).of([checkpoint]) == torch.bfloat16


def test_auto_stays_if_nothing_can_be_compared(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def compare(each: Checkpoint, _: float) -> RecordedPrecision:
        raise PrecisionError(f"checkpoint {each.name} holds no accepted pairs")

    assert dtypes(compare=compare).of([checkpoint]) == torch.bfloat16
    recorded = replace(checkpoint, precision=precision(checkpoint.digest))
    assert dtypes().of([recorded], 3) == torch.bfloat16
    assert dtypes().of([recorded, recorded]) == torch.bfloat16
    stays = "dtype auto stays with bfloat16, not int8: "
    assert caplog.messages == [
        f"{stays}checkpoint own holds no accepted pairs",
        f"{stays}verdicts are compared with 1 steps, not 3",
        f"{stays}nothing is recorded of ensembles",
    ]


def test_the_usual_dtype_is_measured_once(checkpoint: Checkpoint) -> None:
    measured: list[str] = []

    def usual(device: str) -> torch.dtype:
        measured.append(device)
        return torch.float32

    chosen = Dtypes("auto", "cpu", never, usual=usual, gain=lambda *_: gain(None))
    assert {chosen.of([checkpoint]), chosen.of([checkpoint])} == {torch.float32}
    assert measured == ["cpu"]


@pytest.mark.parametrize(("ratio", "enough"), [(1.19, False), (1.2, True)])
def test_a_gain_is_enough_from_a_fifth_on(
    monkeypatch: pytest.MonkeyPatch, ratio: float, *, enough: bool
) -> None:
    monkeypatch.setattr(f"{kernels}.without_int8", lambda _: None)
    monkeypatch.setattr(f"{kernels}._int8_ratio", lambda *_: ratio)
    found = int8_gain(HRMConfig(), torch.bfloat16, "cpu")
    assert found == Gain(
        enough, f"levels run {ratio:.1f} times as fast in int8 as in bfloat16 here"
    )


def test_without_kernels_there_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    found = int8_gain(HRMConfig(), torch.float32, "cpu")
    assert found == Gain(enough=False, reason=f"{SWITCH} is off")


def test_a_shipped_checkpoint_answers_in_int8_here_as_in_float32() -> None:
    """By kernels, or on a processor without products of int8 by their emulation."""
    found = built()
    has_int8 = isinstance(found, Kernels) and has_level(found, torch.int8)
    demo = load_checkpoint(SHIPPED / "sqe-demo")
    usual = fastest_dtype("cpu")
    machine = replace(dtypes_on("cpu", "auto"), usual=lambda _: usual)
    if has_int8:
        assert int8_gain(demo.config, torch.float32, "cpu").reason.startswith("levels run ")
        machine = replace(machine, gain=lambda *_: gain(2.0))
    dtype = machine.of([demo])
    assert dtype == (torch.int8 if has_int8 else usual)
    pairs = [each.example for each in demo.accepted_pairs() or ()][:8]
    inference = Inference(slots=8, halting=HaltedBy.Q, dtype=torch.int8, emulated=True)
    evaluator = Evaluator(demo, inference.open(demo, "cpu"), device="cpu", worker="w")
    with closing(evaluator):
        assert evaluator.dtype == "int8"
        predictions = [evaluator._infer([each], evaluator._engine, urgent=False) for each in pairs]
        for each, prediction in zip(pairs, predictions, strict=True):
            target = each.target_sequence
            assert prediction.result().tokens[: len(target)] == target


def test_a_checkpoint_without_a_record_is_compared_on_this_machine(checkpoint: Checkpoint) -> None:
    machine = replace(dtypes_on("cpu", "auto"), usual=lambda _: torch.float32)
    compared = machine.compare(checkpoint, LOAD_SECONDS)
    assert compared.digest == checkpoint.digest
    assert [each.dtype for each in compared.checks] == ["int8"]
    assert compared.pairs == 4
    again = measure_precision(checkpoint, [torch.int8])
    assert again.checks[0].q == compared.checks[0].q
