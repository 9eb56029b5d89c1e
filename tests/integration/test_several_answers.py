"""Eight prompts with two accepted answers each, from training to verdicts, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from tests.support.commands import no_gpu, no_plots
from tests.support.evaluations import write_jsonl
from tests.support.networks import tiny
from worker.cli.main import cli

__all__ = ["no_gpu", "no_plots"]

SUBJECTS = ("queue", "worker", "router", "ledger", "sensor", "broker", "planner", "parser")
FIRST = [{"prompt": f"Test the {s}", "completion": f"monitor the {s} and report"} for s in SUBJECTS]
SECOND = [
    {"prompt": f"Test the {s}", "completion": f"deploy {s} again {number} times"}
    for number, s in enumerate(SUBJECTS)
]
THIRD = [{"prompt": f"Test the {s}", "completion": f"send data about {s} now"} for s in SUBJECTS]
ACCEPTED = [*FIRST, *({**pair, "alternative": True} for pair in SECOND)]
SIZES = {"hidden_size": 32, "puzzle_emb_ndim": 32, "H_cycles": 1, "L_cycles": 1, "seq_len": 8}
RECIPE = (
    *("--steps", "300", "--measure-every", "50", "--lr", "0.01", "--lr-warmup-steps", "10"),
    *("--weight-decay", "0.1", "--puzzle-emb-lr", "0.05", "--ema-decay", "0.9"),
    *("--save-every", "50", "--keep", "9", "--forward-dtype", "float32"),
)


def sqe_hrm(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `accepted.jsonl`, and the checkpoint `trained` of it."""
    folder = tmp_path_factory.mktemp("answers")
    # A new network would have 100 positions and take minutes.
    config = tiny(**SIZES, num_puzzle_identifiers=64, halt_max_steps=2)
    torch.manual_seed(0)
    conversion = ConversionConfig(puzzle_space=64)
    save_checkpoint(folder / "base", HRM(config).state_dict(), config, conversion, None)
    data = write_jsonl(folder / "accepted.jsonl", *ACCEPTED)
    sqe_hrm(
        *("train", "--data-path", data, "--output", folder / "trained"),
        *("--init-from", folder / "base", "--forget", "--device", "cpu", *RECIPE),
    )
    return folder


Evaluate = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture
def evaluate(folder: Path, tmp_path: Path) -> Evaluate:
    """Evaluates lines with the checkpoint, and returns the report and the verdicts."""

    def run(*lines: dict[str, Any], **options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        data, verdicts = write_jsonl(tmp_path / "data.jsonl", *lines), tmp_path / "verdicts.jsonl"
        report = sqe_hrm(
            *("evaluate", "--checkpoint", folder / "trained", "--data-path", data),
            *("--verdicts", verdicts, "--device", "cpu", "--json"),
            *(text for name, value in options.items() for text in (f"--{name}", value)),
        )
        return json.loads(report), [json.loads(line) for line in verdicts.read_text().splitlines()]

    return run


@pytest.mark.parametrize("halting", ["max_steps", "q"])
def test_both_answers_are_solved_and_the_same(evaluate: Evaluate, halting: str) -> None:
    report, verdicts = evaluate(*ACCEPTED, halting=halting)
    assert (report["overall"]["solved"]["count"], len(verdicts)) == (16, 16)
    assert report["overall"]["solved"]["low"] is None, "every accepted answer was counted"
    assert {(each["text"], each["match"], each["solved"]) for each in verdicts} == {
        ("same", "pair", True)
    }
    # The row of an answer is an inner matter.
    assert [each["puzzle_id"] for each in verdicts[:8]] == [
        each["puzzle_id"] for each in verdicts[8:]
    ]
    assert all(each["puzzle_id"] < 64 for each in verdicts)


def test_a_third_answer_is_not_solved_and_different(evaluate: Evaluate) -> None:
    _, verdicts = evaluate(*THIRD)
    assert len(verdicts) == 8
    assert {(each["text"], each["known"], each["solved"]) for each in verdicts} == {
        ("different", True, False)
    }


def test_tables_of_the_training_pairs_hold_both_answers_too(
    folder: Path, evaluate: Evaluate
) -> None:
    report, _ = evaluate(*ACCEPTED, *THIRD, **{"train-data": str(folder / "accepted.jsonl")})
    solved = {each["name"]: each["overall"]["solved"]["count"] for each in report["baselines"]}
    assert (solved["lookup"], solved["nearest neighbour"]) == (16, 16)
    assert report["overall"]["solved"]["count"] == 16


def test_the_drift_test_changes_both_answers(folder: Path) -> None:
    report = json.loads(
        sqe_hrm(
            *("drift-test", folder / "accepted.jsonl", "--checkpoint", folder / "trained"),
            *("--device", "cpu", "--json"),
        )
    )
    assert (report["lines"]["tested"], report["lines"]["alarming"]) == (16, 0)
    kinds = {each["kind"]: each for each in report["kinds"]}
    assert kinds["words_swapped"]["changes"] > 16
    assert all(each["text_wrong"] == 0 for each in kinds.values())
    assert kinds["case"]["model_wrong"] == 0


def test_checkpoints_of_the_run_are_compared_by_both_answers(folder: Path) -> None:
    report = json.loads(
        sqe_hrm(
            *("checkpoint", "compare", folder / "trained" / "step_50", folder / "trained"),
            *("--data-path", folder / "accepted.jsonl", "--device", "cpu", "--json"),
        )
    )
    solved = {(each["checkpoint"], each["halting"]): each["solved"] for each in report["measured"]}
    for halting in ("max_steps", "q"):
        assert (solved["trained", halting]["count"], solved["trained", halting]["of"]) == (16, 16)


def test_an_ensemble_of_the_runs_checkpoints_solves_both_answers(folder: Path) -> None:
    report = json.loads(
        sqe_hrm(
            *("ensemble", "--checkpoints", folder / "trained", folder / "trained" / "step_50"),
            *("--weights", "9", "1", "--data-path", folder / "accepted.jsonl"),
            *("--device", "cpu", "--json"),
        )
    )
    assert report["ensemble"]["overall"]["solved"]["count"] >= 15
    assert report["ensemble"]["by_known"]["known"]["examples"] == 16


def test_inspect_shows_how_many_prompts_have_several_answers(folder: Path) -> None:
    shown = sqe_hrm("checkpoint", "inspect", folder / "trained")
    assert "8 known pairs, and 8 further answers in puzzle rows of their own" in shown
    assert "accepted completions of 8 prompts, as hashes; 8 have several" in shown
