"""`sqe-hrm train` on files with several completions for one prompt."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from hrm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from hrm.training.answers import ContradictionError
from tests.support.commands import refusal
from tests.support.evaluations import write_jsonl
from tests.support.networks import tiny
from worker.cli.commands.checkpoint import command as checkpoint_command
from worker.cli.commands.train import command

FIRST = [{"prompt": f"plan the {word}", "completion": word} for word in ("test", "agent", "data")]
SECOND = [{**pair, "completion": f"security {pair['completion']}"} for pair in FIRST[:2]]
DECLARED = [*FIRST, *({**pair, "alternative": True} for pair in SECOND)]
SIZES = ("--hidden-size", "16", "--num-heads", "2", "--layers", "1", "--puzzle-space", "50")
SHORT = ("--steps", "2", "--batch-size", "5", "--measure-every", "1", "--forward-dtype", "float32")


def run(data: Path, output: Path, *options: str) -> Result:
    arguments = ["--data-path", str(data), "--output", str(output), "--device", "cpu", *options]
    return CliRunner().invoke(command, arguments)


def train(data: Path, output: Path, *options: str) -> Result:
    return run(data, output, *SIZES, *SHORT, *options)


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def answers_of(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    assert checkpoint.training is not None
    return {pair: dict(rows) for pair, rows in checkpoint.training.answers.items()}


def further_rows(checkpoint: Checkpoint) -> list[int]:
    """The rows of answers that are no puzzle's."""
    assert checkpoint.training is not None
    assert checkpoint.training.accepted is not None
    rows = {row for rows in answers_of(checkpoint).values() for row in rows.values()}
    return sorted(rows - checkpoint.training.accepted.puzzles)


def measured(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return content


@pytest.fixture
def contradicting(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", *FIRST, *SECOND)


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "declared.jsonl", *DECLARED)


def test_contradictions_are_named_and_nothing_is_written(
    contradicting: Path, tmp_path: Path
) -> None:
    result = train(contradicting, tmp_path / "out")
    assert isinstance(result.exception, ContradictionError)
    assert refusal(result).startswith(f"{contradicting}: contradicting completions ")
    assert result.stderr.splitlines() == [
        f"{contradicting}: lines 1 and 4: two completions for one prompt",
        f"{contradicting}: lines 2 and 5: two completions for one prompt",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("choice", "kept"), [("first", FIRST), ("last", [FIRST[2], *SECOND])])
def test_one_line_of_each_group_is_trained_and_the_others_are_counted(
    contradicting: Path, tmp_path: Path, choice: str, kept: list[dict[str, Any]]
) -> None:
    result = done(train(contradicting, tmp_path / "out", "--contradictions", choice))
    assert "3 messages, 2 contradicting lines left out; " in result.stderr
    facts = measured(tmp_path / "out")
    assert (facts["contradictions"], facts["lines_left_out"]) == (choice, 2)
    assert facts["training_examples"]["q"]["examples"] == 3
    alone = write_jsonl(tmp_path / "alone.jsonl", *kept)
    done(train(alone, tmp_path / "alone"))
    checkpoints = [load_checkpoint(tmp_path / name) for name in ("out", "alone")]
    assert checkpoints[0].training == checkpoints[1].training
    assert checkpoints[0].digest == checkpoints[1].digest


def test_all_are_accepted_as_if_they_were_declared(
    contradicting: Path, declared: Path, tmp_path: Path
) -> None:
    done(train(contradicting, tmp_path / "all", "--contradictions", "all"))
    result = done(train(declared, tmp_path / "declared"))
    assert "5 messages, 2 of them further answers to a prompt; " in result.stderr
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("all", "declared"))
    assert (ours.training, ours.digest) == (theirs.training, theirs.digest)
    assert ours.config.num_puzzle_identifiers == 52
    assert further_rows(ours) == [50, 51]
    assert measured(tmp_path / "declared")["further_answers"] == 2


def test_each_answer_is_measured_in_its_row(declared: Path, tmp_path: Path) -> None:
    """`checkpoint record` measures what training measured."""
    done(train(declared, tmp_path / "out"))
    trained = load_checkpoint(tmp_path / "out").figures
    assert trained is not None
    assert trained.accepted.messages == 5
    (tmp_path / "out" / "figures.json").unlink()
    arguments = ["record", str(tmp_path / "out"), "--data-path", str(declared), "--device", "cpu"]
    done(CliRunner().invoke(checkpoint_command, arguments))
    assert load_checkpoint(tmp_path / "out").figures == trained


def test_the_rows_come_after_every_puzzle_also_of_those_held_out(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", *DECLARED)
    new = write_jsonl(tmp_path / "new.jsonl", {"prompt": "new", "completion": "x", "puzzle_id": 60})
    done(train(data, tmp_path / "out", "--held-out", str(new)))
    assert further_rows(load_checkpoint(tmp_path / "out")) == [61, 62]


def test_held_out_prompts_get_no_rows(declared: Path, tmp_path: Path) -> None:
    done(train(declared, tmp_path / "out", "--held-out-share", "0.6"))
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.training is not None
    assert len(checkpoint.training.pair_hashes) == 1
    assert checkpoint.config.num_puzzle_identifiers == 50 + len(answers_of(checkpoint))


def test_a_resumed_run_keeps_its_rows_and_ends_in_the_same_weights(
    declared: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done(train(declared, whole, "--save-every", "1"))
    shutil.copytree(whole / "step_1", cut / "step_1")
    done(run(declared, cut, "--resume"))
    ends = [load_checkpoint(folder / "step_2") for folder in (whole, cut)]
    assert ends[0].digest == ends[1].digest
    assert ends[0].training == ends[1].training
    assert len(answers_of(ends[1])) == 2


def test_a_run_that_was_started_with_contradictions_is_resumed(
    contradicting: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done(train(contradicting, whole, "--save-every", "1", "--contradictions", "first"))
    shutil.copytree(whole / "step_1", cut / "step_1")
    assert (
        "has first: leave it out"
        in run(contradicting, cut, "--resume", "--contradictions", "last").stderr
    )
    result = done(run(contradicting, cut, "--resume"))
    assert "3 messages, 2 contradicting lines left out; " in result.stderr
    digests = [load_checkpoint(folder / "step_2").digest for folder in (whole, cut)]
    assert digests[0] == digests[1]


def test_a_checkpoint_with_answers_is_trained_further(declared: Path, tmp_path: Path) -> None:
    base, output = tmp_path / "base", tmp_path / "out"
    done(train(declared, base))
    third = {**FIRST[2], "completion": "third", "alternative": True}
    more = write_jsonl(tmp_path / "more.jsonl", *reversed(DECLARED), third)
    frozen = ("--lr", "1e-12", "--puzzle-emb-lr", "0", "--weight-decay", "0")
    done(run(more, output, "--init-from", str(base), *SHORT, *frozen))
    before, after = load_checkpoint(base), load_checkpoint(output)
    assert answers_of(before).items() < answers_of(after).items()
    assert after.config.num_puzzle_identifiers == 53
    assert further_rows(after) == [50, 51, 52]
    table = after.state["puzzle_emb.weights"]
    assert torch.equal(table[:52], before.state["puzzle_emb.weights"])
    assert not table[52].any()


def test_a_network_without_a_puzzle_table_cannot_hold_several_answers(
    declared: Path, tmp_path: Path
) -> None:
    config = tiny(puzzle_emb_ndim=0, seq_len=100, halt_max_steps=2)
    base = tmp_path / "base"
    conversion = ConversionConfig(puzzle_space=5)
    save_checkpoint(base, HRM(config).state_dict(), config, conversion, None)
    told = refusal(run(declared, tmp_path / "out", "--init-from", str(base), "--forget", *SHORT))
    assert told == (
        f"{declared}: 2 prompts have several accepted answers, but base has no puzzle table to "
        "hold them: give one to each, or start without --init-from"
    )
    assert not (tmp_path / "out").exists()


def test_answers_beyond_the_largest_table_are_refused(tmp_path: Path) -> None:
    pair = {"prompt": "p", "completion": "c", "puzzle_id": 2**20 - 1}
    data = write_jsonl(
        tmp_path / "data.jsonl", pair, {**pair, "completion": "data", "alternative": True}
    )
    told = refusal(train(data, tmp_path / "out"))
    assert told.startswith(
        f"{data}: 1 further answers need puzzle rows up to 1048576, but the largest puzzle table "
        "has 1048576: "
    )


def test_a_full_message_has_the_option_alone(tmp_path: Path) -> None:
    envelope = {"schema_version": 1, "message_id": "m", "agent_id": "a"}
    data = write_jsonl(tmp_path / "data.jsonl", *({**envelope, **pair} for pair in FIRST + SECOND))
    assert "lines 1 and 4: " in train(data, tmp_path / "out").stderr
    done(train(data, tmp_path / "out", "--contradictions", "all"))
    assert len(answers_of(load_checkpoint(tmp_path / "out"))) == 2
