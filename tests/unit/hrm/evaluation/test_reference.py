"""The figures of an evaluation equal those of the reference's loss head and outputs."""

import json
import shutil

import pytest

from hrm.evaluation.report import EvaluationReport
from hrm.kernels.compiler import SWITCH
from tests.support import reference as reference_data
from tests.support.evaluations import Run, jsonl, opened


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> EvaluationReport:
    folder = tmp_path_factory.mktemp("reference")
    shutil.copy(reference_data.REFERENCE / "reference_checkpoint.pt", folder / "model.pt")
    config = {"format_version": 1, "model": reference_data.facts()["config"]}
    config["conversion"] = {"puzzle_space": 50}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        # This network has random weights, and amplifies a difference in the last bit a hundredfold
        # with every ACT step: only the functions that the reference used give its numbers.
        patch.setenv(SWITCH, "off")
        evaluator = opened(folder, slots=4, max_steps=None)
    lines = [example.model_dump_json() for example in reference_data.examples()]
    report = Run(evaluator, jsonl(*lines)).report
    evaluator.close()
    return report


@reference_data.same_rounding
def test_figures_are_those_of_the_references_loss_head(reference: EvaluationReport) -> None:
    wanted, overall = reference_data.facts()["metrics_at_last_step"], reference.overall
    accuracy, steps = overall.token_accuracy_by_example.mean, overall.act_steps.mean
    assert accuracy is not None
    assert steps is not None
    assert overall.examples == wanted["count"] == 9
    assert accuracy * 9 == pytest.approx(wanted["accuracy"], abs=1e-6)
    assert overall.solved.count == wanted["exact_accuracy"] == 3
    assert overall.q_right.count == wanted["q_halt_accuracy"] == 5
    assert steps * 9 == wanted["steps"] == 144


@reference_data.same_rounding
def test_every_other_figure_is_that_of_the_references_outputs(reference: EvaluationReport) -> None:
    steps = [16] * 9
    labels, tokens = reference_data.batch().labels, reference_data.tokens_at(steps)
    q_halt, q_continue = reference_data.q_logits_at(steps).unbind(-1)
    counted, right = labels != -100, labels == tokens
    overall = reference.overall
    assert overall.correct_tokens == right.sum()
    assert overall.target_tokens == counted.sum()
    assert overall.q_halt.mean == pytest.approx(q_halt.mean().item(), abs=1e-4)
    assert overall.q_halt.spread == pytest.approx(q_halt.std(correction=0).item(), abs=1e-4)
    assert overall.q_continue.max == pytest.approx(q_continue.max().item(), abs=1e-4)
    flips = reference_data.flips_until(steps)
    assert overall.q_flips.mean == pytest.approx(sum(flips) / 9)
    assert overall.flipped == sum(count > 0 for count in flips)
    assert [cell.correct for cell in reference.by_position[:24]] == right.sum(0).tolist()
    assert [cell.tokens for cell in reference.by_position[:24]] == counted.sum(0).tolist()
    assert reference.by_position[99].accuracy is None
    wanted = [
        [int((counted & (labels == target) & (tokens == guess)).sum()) for guess in range(12)]
        for target in range(12)
    ]
    assert [list(row) for row in reference.confusion.counts] == wanted


@reference_data.same_rounding
def test_the_reliability_table_is_that_of_the_references_outputs(
    reference: EvaluationReport,
) -> None:
    steps = [16] * 9
    labels, tokens = reference_data.batch().labels, reference_data.tokens_at(steps)
    stated = reference_data.q_logits_at(steps)[:, 0].sigmoid()
    solved = ((labels == tokens) | (labels == -100)).all(-1)
    for cell in reference.reliability:
        inside = (stated >= cell.low) & (stated < cell.high)
        assert cell.examples == inside.sum()
        assert cell.solved.count == (inside & solved).sum()
        if cell.mean_predicted is not None:
            assert cell.mean_predicted == pytest.approx(stated[inside].mean().item(), abs=1e-4)
    assert sum(cell.examples for cell in reference.reliability) == 9


def test_known_is_null_if_no_training_pairs_are_recorded(reference: EvaluationReport) -> None:
    assert reference.by_known is None
