"""hrm.evaluation.drift: every count is what the verdicts of the changed completions say."""

import io
import json
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.data.changes import ChangeKind, Replacements, change_at, places
from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine
from hrm.evaluation.drift import (
    CACHED_PREDICTIONS,
    EXCERPT,
    DriftOptions,
    DriftReport,
    DriftTestError,
    KindFigures,
    drift_test,
)
from hrm.evaluation.evaluator import Evaluator
from hrm.inference.cache import CachedPredictor
from hrm.inference.prediction import EngineStatistics, Prediction
from hrm.training.examples import read_examples, training_record
from schemas import HaltedBy, HRMExample
from tests.support.checkpoints import state_of
from tests.support.evaluations import write_jsonl
from tests.support.networks import tiny

CONFIG = tiny(seq_len=100)
CONVERTER = Converter(ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX, puzzle_space=5))

LONG = " ".join(f"step{number}," for number in range(150))
ACCEPTED: list[dict[str, Any]] = [
    {"prompt": "Plan it.", "completion": "Check 3 pages, then send 2.5 café menus.\nRun it again."},
    {"prompt": "Plan more.", "completion": LONG},
]
OTHERS = DriftOptions(changes_per_kind=10_000)


class Reciter:
    """A predictor that knows the accepted targets by heart, and counts what it was asked."""

    statistics = EngineStatistics(slots=2)
    halting = HaltedBy.Q
    max_steps = 4
    dtype = torch.float32

    def __init__(self, accepted: list[HRMExample]) -> None:
        self.asked = 0
        self._targets = {example.puzzle_id: example.target_sequence for example in accepted}

    def submit(
        self,
        of: HRMExample,
        *,
        max_steps: int | None = None,
        urgent: bool = True,  # noqa: ARG002
    ) -> Future[Prediction]:
        self.asked += 1
        target = self._targets[of.puzzle_id]
        tokens = (*target, *[1] * (CONFIG.seq_len - len(target)))
        future: Future[Prediction] = Future()
        future.set_result(Prediction(tokens, max_steps or 1, HaltedBy.Q, 1.0, 0.0, 0))
        return future

    def wait_for_room(
        self,
        timeout: float | None = None,
        *,
        urgent: bool = True,  # noqa: ARG002
    ) -> bool:
        return timeout is None

    def close(self) -> None:
        pass


class Site:
    """A checkpoint that was trained on `ACCEPTED`, and what its evaluator was asked."""

    def __init__(self, folder: Path, *, record: int | None = 2) -> None:
        examples = read_examples(write_jsonl(folder / "accepted.jsonl", *ACCEPTED), CONVERTER)
        kept = training_record(examples)
        if record == 1:
            kept = kept.model_copy(update={"format_version": 1, "accepted": None})
        model = folder / "model"
        save_checkpoint(
            model, state_of(CONFIG), CONFIG, CONVERTER.config, None if record is None else kept
        )
        checkpoint = load_checkpoint(model)
        self.predictor = Reciter([each.example for each in examples])
        cached = CachedPredictor(self.predictor, CONFIG, entries=CACHED_PREDICTIONS)
        self.evaluator = Evaluator(checkpoint, cached, device="cpu", worker="w")
        self.refused: list[RefusedLine] = []
        self.progress: list[tuple[int, int]] = []

    def test(self, *lines: Any, options: DriftOptions = OTHERS) -> DriftReport:  # noqa: ANN401
        text = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )
        return drift_test(
            io.BytesIO(text.encode()),
            "data",
            self.evaluator,
            options,
            on_refused=self.refused.append,
            on_change=lambda done, planned: self.progress.append((done, planned)),
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def by_kind(report: DriftReport) -> dict[ChangeKind, KindFigures]:
    assert [figures.kind for figures in report.kinds] == list(ChangeKind)
    return {figures.kind: figures for figures in report.kinds}


@pytest.mark.parametrize(
    "kind",
    [
        ChangeKind.WORDS_SWAPPED,
        ChangeKind.NUMBER_TIMES_10,
        ChangeKind.NOT_INSERTED,
        ChangeKind.SENTENCE_DELETED,
        ChangeKind.TRUNCATED,
        ChangeKind.TRUNCATED_BEFORE_END,
        ChangeKind.COMMA_DROPPED,
    ],
)
def test_a_change_is_missed_if_the_tokens_that_are_read_stay_equal(
    site: Site, kind: ChangeKind
) -> None:
    figures = by_kind(site.test(*ACCEPTED))[kind]
    changed = missed = 0
    for line in ACCEPTED:
        before = CONVERTER.tokenizer.sequence(line["completion"])
        for span in places(kind, line["completion"]):
            change = change_at(span, kind, line["completion"], Replacements(), Random(0))
            assert change is not None
            changed += 1
            missed += CONVERTER.tokenizer.sequence(change.text) == before
    assert (figures.places, figures.changes, figures.model_wrong) == (changed, changed, missed)
    assert changed > 0


def test_no_change_beyond_the_words_that_are_read_is_noticed_by_the_model(site: Site) -> None:
    figures = by_kind(site.test("", ACCEPTED[1]))
    assert figures[ChangeKind.TRUNCATED].places == 149
    assert figures[ChangeKind.TRUNCATED].model_wrong == 150 - 98
    assert figures[ChangeKind.ENDING_APPENDED].model_wrong == 1


def test_the_text_check_misses_nothing_and_raises_no_false_alarm(site: Site) -> None:
    for figures in site.test(*ACCEPTED).kinds:
        assert figures.text_checked == figures.changes > 0
        assert figures.text_wrong == 0


def test_harmless_changes_raise_no_alarm_of_the_model(site: Site) -> None:
    harmless = [figures for figures in site.test(*ACCEPTED).kinds if figures.harmless]
    # NFD splits "café" into other characters: another word to the model.
    assert {figures.kind: figures.model_wrong for figures in harmless} == {
        ChangeKind.CASE: 0,
        ChangeKind.WHITE_SPACE: 0,
        ChangeKind.LINE_BREAK: 0,
        ChangeKind.UNICODE_FORM: 1,
    }


def test_a_prediction_is_computed_once_for_each_message(site: Site) -> None:
    site.test(*ACCEPTED)
    assert site.predictor.asked == len(ACCEPTED)


def test_the_counts_do_not_depend_on_the_cache(tmp_path: Path) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir()
    cached, plain = map(Site, folders)
    plain.evaluator._engine = plain.predictor
    options = DriftOptions(changes_per_kind=20)
    first, second = (each.test(*ACCEPTED, options=options) for each in (cached, plain))
    assert first.kinds == second.kinds
    assert plain.predictor.asked > len(ACCEPTED)


def test_only_known_messages_without_an_alarm_are_changed(site: Site) -> None:
    example = CONVERTER.convert("Plan it.", "Check", None, 0).model_dump_json()
    report = site.test(
        ACCEPTED[0],
        {"prompt": "Plan more.", "completion": "Nothing of this was accepted."},
        {"prompt": "Unheard of.", "completion": "x", "puzzle_id": 10**6},
        "oops",
        example,
        "",
        {"prompt": "Another.", "completion": "y"},
    )
    assert report.lines.model_dump() == {
        "tested": 1,
        "alarming": 1,
        "unknown": 2,
        "unknown_by_match": {"none": 2},
        "converted": 1,
        "refused": {"not_json": 1},
    }
    assert [line.number for line in site.refused] == [4]
    figures = by_kind(report)[ChangeKind.TRUNCATED]
    assert figures.changes == len(ACCEPTED[0]["completion"].split()) - 1


def test_a_pair_that_is_declared_an_alternative_is_tested_like_another(site: Site) -> None:
    lines = [{**pair, "alternative": True} for pair in ACCEPTED]
    assert site.test(*lines).lines.tested == len(ACCEPTED)


def test_a_completion_that_only_the_text_check_alarms_on_is_not_changed(site: Site) -> None:
    report = site.test(ACCEPTED[0], {**ACCEPTED[1], "completion": LONG + " and more"})
    assert (report.lines.tested, report.lines.alarming) == (1, 1)


def test_messages_are_named_by_their_ids_or_lines_and_keep_their_line_for_the_puzzle(
    site: Site,
) -> None:
    full = {"schema_version": 1, "message_id": "mine", "agent_id": "a", **ACCEPTED[0]}
    options = DriftOptions(changes_per_kind=10_000, examples=100)
    report = site.test(full, ACCEPTED[1], options=options)
    assert report.lines.tested == 2
    named = {example.message_id for figures in report.kinds for example in figures.examples}
    assert named == {"mine", "line:2"}


def test_more_places_than_the_limit_are_sampled_over_all_messages(site: Site) -> None:
    options = DriftOptions(changes_per_kind=60, examples=60)
    figures = by_kind(site.test(*ACCEPTED, options=options))
    for each in figures.values():
        assert each.changes == min(60, each.places)
    words = sorted(example.word for example in figures[ChangeKind.TRUNCATED].examples)
    assert len(set(words)) == len(words)  # no place twice
    assert words[0] < 110
    assert words[-1] > 140
    assert {planned for _, planned in site.progress} == {sum(e.changes for e in figures.values())}
    assert [done for done, _ in site.progress] == list(range(1, len(site.progress) + 1))


def test_every_place_is_drawn_equally_often(site: Site) -> None:
    drawn: list[int] = []
    for seed in range(60):
        options = DriftOptions(changes_per_kind=5, examples=5, seed=seed)
        report = site.test("", ACCEPTED[1], options=options)
        drawn += [each.word for each in by_kind(report)[ChangeKind.TRUNCATED].examples]
    # A third of the words are beyond the 98th, and only changes of those are missed.
    assert len(drawn) == pytest.approx(300 * 52 / 149, abs=30)
    assert sum(word > 125 for word in drawn) == pytest.approx(len(drawn) / 2, abs=20)


def test_a_seed_repeats_the_report_and_examples_alter_no_count(site: Site) -> None:
    def run(seed: int, examples: int = 0) -> DriftReport:
        options = DriftOptions(changes_per_kind=30, examples=examples, seed=seed)
        return site.test(*ACCEPTED, options=options)

    assert run(1, 3) == run(1, 3)
    bare = [figures.model_copy(update={"examples": ()}) for figures in run(1, 3).kinds]
    assert bare == list(run(1).kinds)
    assert run(1).kinds != run(2).kinds


def test_examples_hold_the_words_around_the_change_and_only_if_asked_for(site: Site) -> None:
    assert not any(figures.examples for figures in site.test(*ACCEPTED).kinds)
    options = DriftOptions(changes_per_kind=10_000, examples=2)
    found = by_kind(site.test(*ACCEPTED, options=options))
    assert all(len(figures.examples) <= 2 for figures in found.values())
    (example,) = found[ChangeKind.ENDING_APPENDED].examples
    assert (example.message_id, example.word, example.words) == ("line:2", 151, 150)
    assert LONG.endswith(example.before)
    for figures in found.values():
        for example in figures.examples:
            excerpts = (example.before, example.old, example.new, example.after)
            assert max(map(len, excerpts)) <= EXCERPT
            assert example.before in ACCEPTED[0]["completion"] + LONG


def test_a_record_without_texts_leaves_the_text_check_out(tmp_path: Path) -> None:
    report = Site(tmp_path, record=1).test(*ACCEPTED)
    assert report.lines.tested == 2
    assert {figures.text_checked for figures in report.kinds} == {0}
    # Such a record has no lengths either, so a text that is cut before "end" is still solved.
    assert by_kind(report)[ChangeKind.TRUNCATED_BEFORE_END].model_wrong == 1


def test_a_file_without_a_known_message_is_refused(site: Site) -> None:
    with pytest.raises(DriftTestError, match="data: checkpoint model knows no message of it: "):
        site.test({"prompt": "Unheard of.", "completion": "x"})


def test_a_checkpoint_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DriftTestError, match="model has no record of its training pairs"):
        Site(tmp_path, record=None).test(*ACCEPTED)


def test_a_change_that_makes_a_message_too_large_is_not_counted(site: Site) -> None:
    size = sum(len(ACCEPTED[0][name].encode()) for name in ("prompt", "completion"))
    site.evaluator._max_message_bytes = size
    figures = by_kind(site.test(ACCEPTED[0]))
    assert figures[ChangeKind.ENDING_APPENDED].places == 1
    assert figures[ChangeKind.ENDING_APPENDED].changes == 0
    assert figures[ChangeKind.COMMA_DROPPED].changes == 1


def test_the_report_reads_back_from_its_json(site: Site) -> None:
    report = site.test(*ACCEPTED, options=DriftOptions(examples=1))
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
