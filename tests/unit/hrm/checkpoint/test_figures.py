"""Recorded figures: the rule that they support, the file, and its bond to the weights."""

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hrm.checkpoint.figures import (
    FIGURES,
    MEASURED,
    RecordedFigures,
    RecordedRule,
    RecordedSet,
    halting_evidence,
    joint_evidence,
    read_figures,
    write_figures,
)
from hrm.evaluation.measurement import EachUnderBothRules
from hrm.evaluation.measurement import ExampleFigures as Each
from hrm.evaluation.recorded import recorded_figures
from hrm.model.outputs import Correctness
from schemas import HaltedBy
from tests.support.checkpoints import RECORD, SHA256, TINY, refusal, saved, state_of


def measured(
    q: int = 100, fixed: int = 100, *, q_right: int = 100, steps: float = 2.5
) -> RecordedSet:
    """Figures of 100 messages of ten tokens, of which the rules solve `q` and `fixed`."""
    return RecordedSet(
        messages=100,
        target_tokens=1000,
        max_steps=RecordedRule(
            solved=fixed, tokens_right=10 * fixed, q_right=fixed, mean_act_steps=16
        ),
        q=RecordedRule(solved=q, tokens_right=10 * q, q_right=q_right, mean_act_steps=steps),
    )


def figures(
    accepted: RecordedSet | None = None,
    held_out: RecordedSet | None = None,
    digest: str = "d" * 64,
) -> RecordedFigures:
    return RecordedFigures(
        digest=digest,
        halt_max_steps=16,
        date=date(2026, 11, 30),
        version="0.1.0",
        accepted=accepted or measured(),
        held_out=held_out,
    )


# The rule that figures support.


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (
            figures(),
            (
                "q: solves 100 of 100, as under 16 fixed steps, Q head right for 100 of 100, "
                "2.50 steps instead of 16"
            ),
        ),
        (
            figures(measured(q=84, fixed=82)),
            (
                "q: solves 84 of 100, 82 under 16 fixed steps, Q head right for 100 of 100, "
                "2.50 steps instead of 16"
            ),
        ),
        (figures(measured(q=66, fixed=82)), "fixed steps: q solves 66, fixed steps 82"),
        (figures(measured(q=99)), "fixed steps: q solves 99, fixed steps 100"),
        (
            figures(measured(q_right=94)),
            "fixed steps: Q head right for 94 of 100 under q: fewer than 95 %",
        ),
        (
            figures(held_out=measured(q=3, fixed=4)),
            "fixed steps: q solves 3 of the held-out messages, fixed steps 4",
        ),
        (figures(measured(q=0, fixed=0)), "fixed steps: q solves no accepted pair"),
        (
            None,
            "fixed steps: no figures recorded, and sqe-hrm checkpoint record measures them",
        ),
    ],
)
def test_the_rule_and_its_reason(recorded: RecordedFigures | None, reason: str) -> None:
    evidence = halting_evidence(recorded)
    assert evidence.reason == reason
    assert evidence.rule is (HaltedBy.Q if reason.startswith("q:") else HaltedBy.MAX_STEPS)


def test_95_percent_are_enough_of_the_accepted_pairs() -> None:
    assert figures(measured(q_right=95)).evidence().rule is HaltedBy.Q
    # It is not asked about messages that nobody trained: nothing is known of what they need.
    held_out = measured(q=3, fixed=3, q_right=10)
    assert figures(held_out=held_out).evidence().rule is HaltedBy.Q


def test_figures_say_nothing_of_another_step_limit() -> None:
    assert figures().evidence(16).rule is HaltedBy.Q
    assert figures().evidence(8) == (
        HaltedBy.MAX_STEPS,
        "the figures were measured with at most 16 steps, not 8",
    )


def test_several_checkpoints_halt_by_q_if_each_of_them_would() -> None:
    good, refused, none = (
        halting_evidence(each) for each in (figures(), figures(measured(q=99)), None)
    )
    assert joint_evidence({"a": good, "b": good}) == (
        HaltedBy.Q,
        f"a: {good.why}; b: {good.why}",
    )
    assert joint_evidence({"a": good, "b": refused, "c": none}).reason == (
        "fixed steps: b: q solves 99, fixed steps 100; c: no figures recorded, and sqe-hrm "
        "checkpoint record measures them"
    )


# The file.


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, RecordedFigures]:
    """A checkpoint folder, and the figures that it records."""
    folder = saved(tmp_path / "mine")
    of_these = figures(digest=load_checkpoint(folder).digest, held_out=measured(q=7, fixed=7))
    write_figures(folder, of_these)
    return folder, of_these


def test_a_checkpoint_has_its_figures(recorded: tuple[Path, RecordedFigures]) -> None:
    folder, written = recorded
    assert load_checkpoint(folder).figures == written
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "figures.json",
        "model.safetensors",
        "training_pairs.json",
    }
    content = json.loads((folder / FIGURES).read_text())
    assert (content["format_version"], content["dtype"]) == (1, "float32")
    assert content["accepted"]["q"] == {
        "solved": 100,
        "tokens_right": 1000,
        "q_right": 100,
        "mean_act_steps": 2.5,
    }


def test_a_checkpoint_without_the_file_has_none(tmp_path: Path) -> None:
    assert load_checkpoint(saved(tmp_path / "mine")).figures is None


@pytest.mark.parametrize(
    ("content", "day"),
    [
        (None, None),
        ('{"date": "2026-11-22", "step": 3}', date(2026, 11, 22)),
        ('{"step": 3}', None),
        ('{"date": 7}', None),
        ('{"date": "yesterday"}', None),
        ("[]", None),
        ("no json", None),
        ("[" * 100_000, None),
    ],
)
def test_the_day_of_its_training_is_read_if_it_is_recorded(
    tmp_path: Path, content: str | None, day: date | None
) -> None:
    folder = saved(tmp_path / "mine")
    if content is not None:
        (folder / MEASURED).write_text(content)
    assert load_checkpoint(folder).trained_on == day


def test_figures_of_other_weights_are_ignored(
    recorded: tuple[Path, RecordedFigures], caplog: pytest.LogCaptureFixture
) -> None:
    folder, written = recorded
    before = (folder / "model.safetensors").read_bytes()
    other = {key: tensor + 1 for key, tensor in state_of(TINY).items()}
    save_checkpoint(folder.with_name("other"), other, TINY, SHA256, RECORD)
    (folder.with_name("other") / "model.safetensors").replace(folder / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(folder)
    assert loaded.figures is None
    assert caplog.messages == [
        f"{folder / FIGURES}: ignored: its figures are of other weights (%.12s) than these "
        f"(%.12s): measure again with sqe-hrm checkpoint record" % (written.digest, loaded.digest)
    ]
    (folder / "model.safetensors").write_bytes(before)
    assert load_checkpoint(folder).figures == written


def test_saving_weights_removes_the_figures_of_earlier_ones(
    recorded: tuple[Path, RecordedFigures],
) -> None:
    folder, _ = recorded
    saved(folder)
    assert not (folder / FIGURES).exists()


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("format_version",), 2, "figures.json: format_version: "),
        (("accepted", "q", "solved"), 101, "accepted: q.solved: 101 of 100"),
        (("accepted", "q", "q_right"), 101, "accepted: q.q_right: 101 of 100"),
        (("accepted", "max_steps", "tokens_right"), 1001, "max_steps.tokens_right: 1001 of 1000"),
        (("held_out", "q", "mean_act_steps"), 17.0, "held_out.q.mean_act_steps: 17 of 16"),
        (("accepted", "q", "mean_act_steps"), float("nan"), "accepted.q.mean_act_steps"),
        (("accepted", "q", "solved"), "7", "accepted.q.solved"),
        (("accepted", "q", "solve_rate"), 1.0, "accepted.q.solve_rate"),
        (("date",), "yesterday", "figures.json: date: "),
    ],
)
def test_a_damaged_file_is_one_line(
    recorded: tuple[Path, RecordedFigures],
    place: tuple[str, ...],
    value: Any,  # noqa: ANN401
    problem: str,
) -> None:
    folder, _ = recorded
    content = json.loads((folder / FIGURES).read_text())
    within = content
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = value
    (folder / FIGURES).write_text(json.dumps(content))
    told = refusal(folder)
    assert told.startswith(f"{folder / FIGURES}: ")
    assert problem in told
    assert told.endswith(": remove it, and measure again with sqe-hrm checkpoint record")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}'])
def test_a_truncated_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    folder = saved(tmp_path / "mine")
    (folder / FIGURES).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / FIGURES}: ")


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / FIGURES).mkdir()
    with pytest.raises(CheckpointError, match=r"figures\.json: cannot be read: Is a directory"):
        read_figures(tmp_path / FIGURES, "")
    with pytest.raises(CheckpointError, match=r"figures\.json: cannot be written \("):
        write_figures(tmp_path, figures())


# From measurements.


def each(right: list[int], targets: list[int], q_right: list[bool], steps: list[int]) -> Each:
    correct, of = torch.tensor(right), torch.tensor(targets)
    correctness = Correctness(correct / of, correct == of, correct, of)
    return Each(correctness, torch.tensor(q_right), torch.tensor(steps))


def test_measurements_become_figures(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(tmp_path))
    fixed = each([4, 2, 5], [4, 3, 5], [True, True, False], [8, 8, 8])
    q = each([4, 1, 1], [4, 3, 5], [True, False, False], [1, 2, 1])
    found = recorded_figures(
        checkpoint, EachUnderBothRules(fixed, q), EachUnderBothRules(max_steps=q, q=fixed)
    )
    assert (found.digest, found.halt_max_steps) == (checkpoint.digest, TINY.halt_max_steps)
    assert (found.accepted.messages, found.accepted.target_tokens) == (3, 12)
    assert found.accepted.of(HaltedBy.MAX_STEPS) == RecordedRule(
        solved=2, tokens_right=11, q_right=2, mean_act_steps=8
    )
    assert found.accepted.of(HaltedBy.Q) == RecordedRule(
        solved=1, tokens_right=6, q_right=1, mean_act_steps=4 / 3
    )
    assert found.held_out is not None
    assert found.held_out.max_steps == found.accepted.q
    assert abs((date.today() - found.date).days) <= 1  # noqa: DTZ011 - two time zones at most
