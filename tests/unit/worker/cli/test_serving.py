"""A worker opens a model, with its halting rule and the pairs with which it is tested."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm.ensemble.stacking import EnsembleError
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.precision import dtypes_on
from hrm.inference.dtypes import Dtypes
from hrm.kernels import Gain
from hrm.kernels.compiler import Kernels, kernels
from hrm.kernels.cpu import has_level
from schemas import HaltedBy
from tests.support.promotions import EARLY, LATE, saved_with, solved_by
from worker.cli.serving import Serving
from worker.process import devices
from worker.process.reload import Reloader, SelfTestError
from worker.settings import Settings
from worker.telemetry.metrics import Metrics

CPU = devices.Device("cpu", "cpu")

CHOSEN = "halting auto chose "


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A worker leaves torch one thread: give back the others."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def opened(
    checkpoint: str = "sqe-demo",
    *members: str,
    halting: str = "auto",
    max_steps: int | None = None,
) -> tuple[HaltedBy, int]:
    """The halting rule and the limit of steps of the evaluator that a worker opens."""
    serving = Serving(
        Settings.from_env(
            {"SQE_CHECKPOINT": checkpoint, "SQE_HALTING": halting}, slots=1, threads=1
        ),
        devices.pin("cpu", {}),
        members=members,
        weights=(),
        strategy="weighted_average",
        combiner=None,
        max_steps=max_steps,
        dtype="float32",
    )
    with closing(serving.read_model("me").open()) as evaluator:
        assert isinstance(evaluator, Evaluator)
        return evaluator.halting, evaluator.max_steps


@pytest.mark.parametrize(
    ("checkpoints", "max_steps", "rule", "said"),
    [
        (
            ["sqe-demo"],
            None,
            HaltedBy.Q,
            (
                "q: solves 84 of 84, as under 16 fixed steps, Q head right for 84 of 84, 1.65 "
                "steps instead of 16"
            ),
        ),
        (
            ["sqe-demo-600"],
            None,
            HaltedBy.MAX_STEPS,
            "fixed steps: Q head right for 11 of 84 under q: fewer than 95 %",
        ),
        (
            ["sqe-demo"],
            8,
            HaltedBy.MAX_STEPS,
            "fixed steps: the figures were measured with at most 16 steps, not 8",
        ),
        (
            ["current", "sqe-demo", "sqe-demo-600"],
            None,
            HaltedBy.MAX_STEPS,
            "fixed steps: sqe-demo-600: Q head right for 11 of 84 under q: fewer than 95 %",
        ),
    ],
)
def test_auto_is_the_rule_that_the_recorded_figures_support(
    checkpoints: list[str],
    max_steps: int | None,
    rule: HaltedBy,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert opened(*checkpoints, max_steps=max_steps) == (rule, max_steps or 16)
    assert f"{CHOSEN}{said}" in caplog.messages


def test_a_rule_that_is_named_is_taken_whatever_the_figures_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert opened("sqe-demo", halting="max_steps")[0] is HaltedBy.MAX_STEPS
    assert opened("sqe-demo-600", halting="q")[0] is HaltedBy.Q
    assert CHOSEN not in caplog.text


def test_auto_decides_the_dtype_anew_for_each_checkpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def dtypes(device: str, name: str) -> Dtypes:
        return replace(
            dtypes_on(device, name),
            usual=lambda _: torch.float32,
            gain=lambda *_: Gain(enough=True, reason="fast"),
        )

    monkeypatch.setattr("worker.cli.serving.dtypes_on", dtypes)
    found = kernels()
    has_int8 = isinstance(found, Kernels) and has_level(found, torch.int8)
    served = serving(Path("checkpoints"), dtype="auto", checkpoint="sqe-demo")
    names = []
    for checkpoint in (None, "sqe-demo-2", None):
        with closing(served.read_model("me", checkpoint).open()) as evaluator:
            names.append(evaluator.dtype)
    assert names == ["int8" if has_int8 else "float32", "float32", *names[:1]]
    said = [line for line in caplog.messages if line.startswith("dtype auto ")]
    assert [line.partition(":")[0] for line in said] == [
        "dtype auto chose int8",
        "dtype auto stays with float32, not int8",
        "dtype auto chose int8",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that solves its pairs, two that do not say so, and one that lies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    solved = solved_by(EARLY, 12)
    saved_with(folder / "honest", EARLY, solved, recorded=True)
    saved_with(folder / "silent", LATE, solved)
    saved_with(folder / "lying", LATE, solved, recorded=True)
    return folder


def serving(folder: Path, **fields: Any) -> Serving:  # noqa: ANN401
    options = {
        "members": (),
        "weights": (),
        "strategy": "weighted_average",
        "combiner": None,
        "max_steps": None,
        "dtype": "float32",
    }
    settings = Settings(
        checkpoint_dir=folder,
        checkpoint=fields.pop("checkpoint", "honest"),
        halting=fields.pop("halting", "auto"),
    )
    return Serving(settings, CPU, **{**options, **fields})


@pytest.mark.parametrize(
    ("checkpoints", "max_steps", "said"),
    [
        (("sqe-demo",), None, None),
        (("sqe-demo",), 4, "measured with --max-steps 16"),
        (("sqe-demo", "sqe-demo-600"), None, "none is recorded of ensembles"),
    ],
)
def test_a_worker_says_if_no_alert_can_compare_its_figures(
    caplog: pytest.LogCaptureFixture,
    checkpoints: tuple[str, ...],
    max_steps: int | None,
    said: str | None,
) -> None:
    caplog.set_level("WARNING")
    members = checkpoints if len(checkpoints) > 1 else ()
    opened(checkpoints[0], *members, max_steps=max_steps)
    warned = [text for text in caplog.messages if text.startswith("no alert compares")]
    assert len(warned) == (said is not None)
    assert (said or "") in "".join(warned)


def test_every_engine_gets_the_same_threads(folder: Path) -> None:
    torch.set_num_threads(3)
    served = serving(folder)
    for name in (None, "silent"):
        with_threads = served.read_model("w", name)
        evaluator = with_threads.open()
        assert evaluator.statistics.slots == 12, "4 for each thread"
        evaluator.close()


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({}, 8),
        ({"halting": "q"}, 8),
        ({"max_steps": 2}, 0),
        ({"checkpoint": "silent"}, 0),
        ({"members": ("honest", "silent")}, 0),
    ],
    ids=str,
)
def test_a_model_is_tested_with_what_it_is_recorded_to_solve_in_this_way(
    folder: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], pairs: int
) -> None:
    caplog.set_level("INFO")
    evaluator = serving(folder, **fields).read_model("w").open()
    assert evaluator.self_test() == (pairs, pairs)
    evaluator.close()
    assert caplog.text.count("no self-test: ") == (not pairs)
    if fields.get("checkpoint") == "silent":
        assert "sqe-hrm checkpoint record measures it" in caplog.text


def test_a_worker_whose_checkpoint_does_not_solve_what_it_says_does_not_start(
    folder: Path,
) -> None:
    served = serving(folder, checkpoint="lying")
    reloader = Reloader(lambda name: served.read_model("w", name), CPU, Metrics())
    with pytest.raises(SelfTestError, match=r"wrong answers: 8 of 8 known pairs of lying \("):
        reloader.open()


def test_a_single_checkpoint_takes_no_ensembles_place(folder: Path) -> None:
    with pytest.raises(EnsembleError, match="restart it to serve a single checkpoint"):
        serving(folder, members=("honest", "silent")).read_model("w", "silent")
