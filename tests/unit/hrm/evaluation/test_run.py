"""A file to its report: every figure is what inference over its lines gave."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm.checkpoint import TrainingRecord, pair_hash
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine
from hrm.evaluation import run as evaluation
from hrm.evaluation.baselines import commonest
from hrm.evaluation.counters import ReliabilityCounter
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.report import EvaluationReport
from hrm.evaluation.run import fit_baselines
from hrm.evaluation.statistics import Share
from hrm.inference.engine import Engine
from schemas import HaltedBy, RejectionReason, Verdict
from tests.support.checkpoints import RECORD, SHA256, saved
from tests.support.evaluations import Run, jsonl, opened

LINES: list[dict[str, Any]] = [
    {"prompt": "security test", "completion": "agent data test"},
    {"prompt": "p" * 600, "completion": "monitoring"},
    {"prompt": "plan", "completion": "c" * 2000, "category": "ci_cd"},
    {"prompt": "deploy", "completion": "one two three four five", "puzzle_id": 4},
    {
        "schema_version": 1,
        "message_id": "mine",
        "agent_id": "me",
        "prompt": "agent",
        "completion": "x y",
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def evaluator(checkpoint: Path) -> Iterator[Evaluator]:
    evaluator = opened(checkpoint)
    yield evaluator
    evaluator.close()


# Lines.


def test_verdicts_are_named_by_their_messages_or_lines_in_order(evaluator: Evaluator) -> None:
    run = Run(evaluator, jsonl(*LINES[:3], "", *LINES[3:]))
    names = [(verdict.message_id, verdict.agent_id) for verdict in run.verdicts]
    lines = [("line:1", "file"), ("line:2", "file"), ("line:3", "file"), ("line:5", "file")]
    assert names == [*lines, ("mine", "me")]
    # The checkpoint's policy is the line's index, blank lines included; space 5.
    assert [verdict.puzzle_id for verdict in run.verdicts] == [0, 1, 2, 4, 0]


def test_a_converted_file_gives_the_figures_of_its_messages(evaluator: Evaluator) -> None:
    converter = Converter(SHA256)
    examples = [
        converter.convert(line["prompt"], line["completion"], line.get("puzzle_id"), index)
        for index, line in enumerate(LINES)
    ]
    raw = Run(evaluator, jsonl(*LINES)).report
    converted = Run(evaluator, jsonl(*(example.model_dump_json() for example in examples))).report
    assert (raw.lines.messages, raw.lines.examples) == (5, 0)
    assert (converted.lines.messages, converted.lines.examples) == (0, 5)
    timed = {"inference_seconds"}
    assert converted.overall.model_dump(exclude=timed) == raw.overall.model_dump(exclude=timed)
    assert converted.confusion == raw.confusion
    assert converted.by_category["unknown"].examples == 5
    assert sum(group.examples for group in converted.by_category.values()) == 5


def test_what_cannot_be_evaluated_is_refused_by_number_and_reason(evaluator: Evaluator) -> None:
    long = Converter(SHA256).convert_to_json("a " * 20, "b", 0)
    run = Run(
        evaluator,
        jsonl("oops", LINES[0], {"prompt": "a"}, {**LINES[1], "puzzle_id": 5}, long, LINES[3]),
    )
    assert [(line.number, line.reason) for line in run.refused] == [
        (1, RejectionReason.NOT_JSON),
        (3, RejectionReason.MISSING_FIELD),
        (4, RejectionReason.PUZZLE_OUT_OF_RANGE),
        (5, RejectionReason.TOO_LARGE),
    ]
    assert [verdict.message_id for verdict in run.verdicts] == ["line:2", "line:6"]
    assert run.report.lines.refused == {
        "not_json": 1,
        "missing_field": 1,
        "puzzle_out_of_range": 1,
        "too_large": 1,
    }


def test_an_example_without_a_finite_answer_is_refused_alone(evaluator: Evaluator) -> None:
    assert isinstance(evaluator._engine, Engine)
    evaluator._engine.networks[0].puzzle_emb.weights[1] = torch.nan
    run = Run(evaluator, jsonl(*LINES))
    assert [(line.number, line.reason) for line in run.refused] == [
        (2, RejectionReason.EVALUATION_FAILED)
    ]
    assert run.report.overall.examples == 4


# Beside the model.


def test_the_text_check_is_counted_for_messages_and_unknown_for_examples(
    evaluator: Evaluator,
) -> None:
    security = {"prompt": "security", "puzzle_id": 3}
    lines = [
        {**security, "completion": "agent"},
        {**security, "completion": "AGENT  test"},
        {**security, "completion": "agents tested"},
        {**security, "puzzle_id": 1, "completion": "agent"},
        {"prompt": "data", "completion": "x", "puzzle_id": 4},
        Converter(SHA256).convert_to_json("security", "agent", 3),
        {"prompt": "data", "completion": "x"},
    ]
    run = Run(evaluator, jsonl(*lines))
    found = [(verdict.match.value, verdict.text.value) for verdict in run.verdicts]
    assert found == [
        ("pair", "same"),
        ("pair", "normalised"),
        ("pair", "different"),
        ("near", "same"),
        ("new", "unknown"),
        ("pair", "unknown"),
        ("none", "unknown"),
    ]
    assert [verdict.known for verdict in run.verdicts] == [match == "pair" for match, _ in found]
    assert [verdict.truncated for verdict in run.verdicts] == [False] * 5 + [None, False]
    assert [verdict.unread_words for verdict in run.verdicts] == [0] * 5 + [None, 0]
    report = run.report
    assert {name: group.examples for name, group in report.by_text.items()} == {
        "same": 2,
        "normalised": 1,
        "different": 1,
        "unknown": 3,
    }
    assert {name: group.examples for name, group in report.by_match.items()} == {
        "pair": 4,
        "near": 1,
        "puzzle": 0,
        "new": 1,
        "none": 1,
    }
    assert (report.truncated, report.unread_words) == (0, 0)


# Groups.


def test_groups_share_out_the_examples(evaluator: Evaluator) -> None:
    run = Run(evaluator, jsonl(*LINES))
    report = run.report
    assert report.by_known is not None
    assert {name: group.examples for name, group in report.by_difficulty.items()} == {
        "easy": 3,
        "medium": 1,
        "hard": 1,
    }
    assert report.by_category["ci_cd"].examples == 2
    unsolved = report.overall.examples - report.overall.solved.count
    for groups, total in (
        (report.by_known, 5),
        (report.by_difficulty, 5),
        (report.by_category, 5),
        (report.by_failure_pattern, unsolved),
    ):
        assert sum(group.examples for group in groups.values()) == total
    counts = report.confusion.counts
    assert sum(map(sum, counts)) == report.overall.target_tokens
    assert sum(counts[token][token] for token in range(12)) == report.overall.correct_tokens


def test_known_are_the_pairs_of_the_checkpoints_record(tmp_path: Path) -> None:
    converter = Converter(SHA256)
    example = converter.convert(LINES[1]["prompt"], "anything", None, 1)
    record = TrainingRecord(
        format_version=1,
        pair_hashes=frozenset({pair_hash(example.puzzle_id, example.input_sequence)}),
        target_token_counts=RECORD.target_token_counts,
    )
    evaluator = opened(saved(tmp_path / "tiny", record))
    baselines = (commonest(record.target_token_counts, "record"),)
    run = Run(evaluator, jsonl(*LINES), baselines=baselines)
    evaluator.close()
    assert [verdict.known for verdict in run.verdicts] == [False, True, False, False, False]
    assert run.report.by_known is not None
    assert run.report.by_known["known"].examples == 1
    (baseline,) = run.report.baselines
    assert baseline.by_known is not None
    assert {name: group.examples for name, group in baseline.by_known.items()} == {
        "known": 1,
        "unknown": 4,
    }
    # Token 11 is the commonest of the record, and the last of every target.
    assert (baseline.overall.correct_tokens, baseline.overall.solved.count) == (5, 0)


def recorded(tmp_path: Path, *lines: dict[str, Any]) -> Evaluator:
    """An evaluator whose checkpoint was trained on `lines`."""
    converter = Converter(SHA256)
    examples = [
        converter.convert(line["prompt"], line["completion"], line.get("puzzle_id"), index)
        for index, line in enumerate(lines)
    ]
    hashes = {pair_hash(example.puzzle_id, example.input_sequence) for example in examples}
    record = TrainingRecord(
        format_version=1,
        pair_hashes=frozenset(hashes),
        target_token_counts=RECORD.target_token_counts,
    )
    return opened(saved(tmp_path / "tiny", record))


def test_shares_have_no_interval_if_every_training_pair_was_counted(tmp_path: Path) -> None:
    evaluator = recorded(tmp_path, *LINES)
    known = Run(evaluator, jsonl(*LINES, *LINES)).report
    mixed = Run(evaluator, jsonl(*LINES, {"prompt": "new", "completion": "b"})).report
    evaluator.close()
    assert (known.all_pairs_counted, mixed.all_pairs_counted) == (True, True)
    for groups in (known.by_difficulty, known.by_category, known.by_known or {}):
        assert {group.solved.low for group in groups.values()} == {None}
    assert (known.overall.solved.low, known.overall.q_right.high) == (None, None)
    assert {cell.solved.low for cell in known.reliability} == {None}
    assert mixed.by_known is not None
    assert mixed.by_known["known"].solved.low is None
    assert mixed.by_known["unknown"].solved.low == 0.0
    assert mixed.overall.solved.low == 0.0


def test_a_part_of_the_pairs_or_changed_completions_are_a_sample(tmp_path: Path) -> None:
    evaluator = recorded(tmp_path, *LINES)
    part = Run(evaluator, jsonl(*LINES[:3])).report
    changed = Run(evaluator, jsonl(*LINES, *[{**LINES[0], "completion": "other"}])).report
    evaluator.close()
    for report in (part, changed):
        assert not report.all_pairs_counted
        assert report.overall.solved.low == 0.0


def test_a_set_without_examples_has_no_figures(evaluator: Evaluator) -> None:
    report = Run(evaluator, jsonl("oops")).report
    overall = report.overall
    assert overall.examples == 0
    assert overall.solved.share is None
    assert overall.token_accuracy is None
    assert overall.efficiency is None
    assert overall.act_steps.median is None
    assert overall.q_halt.mean is None
    assert report.seconds.per_example is None
    assert {cell.mean_predicted for cell in report.reliability} == {None}


# Steps.


@pytest.mark.parametrize("max_steps", [1, 3, 40])
def test_steps_are_those_asked_for_also_above_the_trained(checkpoint: Path, max_steps: int) -> None:
    evaluator = opened(checkpoint, max_steps=max_steps)
    report = Run(evaluator, jsonl(*LINES)).report
    evaluator.close()
    assert (report.setting.max_steps, report.setting.trained_max_steps) == (max_steps, 16)
    assert report.overall.act_steps.min == report.overall.act_steps.max == max_steps
    assert report.overall.efficiency == 1.0
    assert report.overall.halted_by == {HaltedBy.Q: 0, HaltedBy.MAX_STEPS: 5}


def test_efficiency_is_the_share_of_the_allowed_steps(checkpoint: Path) -> None:
    evaluator = opened(checkpoint, halting=HaltedBy.Q, max_steps=20)
    run = Run(evaluator, jsonl(*LINES * 4))
    evaluator.close()
    steps = [verdict.act_steps for verdict in run.verdicts]
    assert len(set(steps)) > 1  # or this shows nothing
    assert run.report.overall.efficiency == pytest.approx(sum(steps) / len(steps) / 20)
    names = [verdict.message_id for verdict in run.verdicts]
    numbered = [f"line:{number}" for number in range(1, 21)]
    assert names == ["mine" if number % 5 == 4 else name for number, name in enumerate(numbered)]


# A file of any length.


def test_lines_are_read_only_as_far_ahead_as_the_engine_needs(evaluator: Evaluator) -> None:
    line = json.dumps({"prompt": "a", "completion": "b", "puzzle_id": 1}) + "\n"
    source = io.BytesIO(line.encode() * 300)
    ahead: list[int] = []
    answered = 0

    def on_verdict(_verdict: Verdict) -> None:
        nonlocal answered
        ahead.append(source.tell() // len(line) - answered)
        answered += 1

    assert Run(evaluator, source, on_verdict).report.overall.examples == 300
    assert max(ahead) <= evaluator.statistics.slots * evaluation.UNANSWERED_PER_SLOT + 1


class Pending:
    """An example in an engine that answers when it is told to."""

    def __init__(self, *, answered: bool) -> None:
        self.answered = answered

    def done(self) -> bool:
        return self.answered

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        if self.answered:
            callback()


def test_a_slow_example_holds_back_a_limited_number_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "MAX_BEHIND", 10)
    submitted = 0

    def lines() -> Iterator[Any]:
        nonlocal submitted
        for index in range(30):
            submitted += 1
            yield evaluation._Line(index, Pending(answered=index > 0), False)  # type: ignore[arg-type]

    answered = evaluation._in_order(lines(), 2)
    first = next(answered)
    assert isinstance(first, evaluation._Line)
    assert (first.index, submitted) == (0, 10)
    assert [line.index for line in answered if isinstance(line, evaluation._Line)] == list(
        range(1, 30)
    )


# Baselines and the Q head.


def test_baselines_are_counted_from_messages_pairs_and_examples() -> None:
    converter = Converter(SHA256)
    example = converter.convert("p", "agent agent agent agent", 0).model_dump_json()
    refused: list[RefusedLine] = []
    left_out: list[str] = []
    found = fit_baselines(
        jsonl({"prompt": "p", "completion": "agent"}, "oops", example, LINES[4]),
        "pairs.jsonl",
        converter,
        on_refused=refused.append,
        on_left_out=left_out.append,
    )
    assert [baseline.fitted_on for baseline in found] == ["3 training pairs of pairs.jsonl"] * 5
    assert left_out == []
    assert set(found[0].tokens or ()) == {2}
    # Its pair has the puzzle that the policy gave the fourth line.
    (own,) = (baseline for baseline in found if baseline.name == "lookup")
    message = converter.convert(LINES[4]["prompt"], "x y", None, 3)
    assert [tuple(each) for each in own.predict(message)] == [message.target_sequence]
    assert [(line.number, line.reason) for line in refused] == [(2, RejectionReason.NOT_JSON)]


def test_no_pair_makes_no_baseline() -> None:
    found = fit_baselines(
        jsonl("oops"),
        "x",
        Converter(SHA256),
        on_refused=lambda _: None,
        on_left_out=lambda _: None,
    )
    assert found == ()


def test_reliability_takes_logits_of_any_size() -> None:
    counter = ReliabilityCounter()
    for q_halt in (-1e9, -1.0, 0.0, 1e9):
        counter.add(q_halt, solved=q_halt > 0)
    bins = counter.bins(Share.measured)
    examples = [cell.examples for cell in bins]
    assert examples == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert bins[-1].mean_predicted == 1.0
    assert bins[-1].solved.share == 1.0


def test_the_report_reads_back_from_its_json(evaluator: Evaluator) -> None:
    report = Run(evaluator, jsonl(*LINES)).report
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report
