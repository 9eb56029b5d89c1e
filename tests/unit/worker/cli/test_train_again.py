"""`sqe-hrm train` on from what is there: a run that goes on, and a checkpoint that starts one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig, PuzzlePolicy, WordHash
from hrm.model.network import HRM
from schemas import SQEHRMError
from tests.support.commands import refusal
from tests.support.networks import tiny
from worker.cli.commands.train import command

WORDS = ("test", "agent", "data", "security", "performance", "deployment")
BASE = tiny(L_layers=2, seq_len=100, num_puzzle_identifiers=8, halt_max_steps=2)
CONVERSION = ConversionConfig(
    word_hash=WordHash.SHA256, puzzle_policy=PuzzlePolicy.LINE_INDEX, puzzle_space=8
)


def write(path: Path, *words: str, **fields: int) -> Path:
    pairs = [{"prompt": f"plan the {word}", "completion": word} | fields for word in words]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def train(data: Path, output: Path, *options: str) -> Result:
    arguments = ["--data-path", str(data), "--output", str(output), "--device", "cpu", *options]
    return CliRunner().invoke(command, arguments)


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def told(result: Result) -> str:
    """The one line of the refusal, as a wrong call or as work that failed."""
    if isinstance(result.exception, SQEHRMError):
        return refusal(result)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.partition("Error: ")[2].splitlines()
    return line


def measured(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return content


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = HRM(BASE)
    network.puzzle_emb.weights.normal_()
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    save_checkpoint(folder, network.state_dict(), BASE, CONVERSION, None)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Path]:
    """The data and the folder of a finished run that started from `base`."""
    folder = tmp_path_factory.mktemp("again")
    data = write(folder / "data.jsonl", *WORDS)
    saving = ("--measure-every", "1", "--save-every", "1", "--keep", "9")
    recipe = ("--steps", "4", "--lr", "0.01", "--seed", "3", "--held-out-share", "0.34")
    done(train(data, folder / "out", "--init-from", str(base), "--forget", *saving, *recipe))
    return data, folder / "out"


# Resuming.


def test_resuming_needs_no_option_and_ends_in_the_same_weights(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = run
    cut = tmp_path / "out"
    shutil.copytree(whole, cut, ignore=shutil.ignore_patterns("step_3", "step_4"))
    result = done(train(data, cut, "--resume"))
    assert [line[:10] for line in result.stderr.splitlines()[2:]] == ["step     3", "step     4"]
    last = [load_checkpoint(folder / "step_4").digest for folder in (whole, cut)]
    assert last[0] == last[1]
    for key in ("recipe", "steps_run", "held_out", "step", "training_examples"):
        assert measured(cut)[key] == measured(whole)[key]


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (("--steps", "5"), "--steps 5, but the run in {} has 4: "),
        (("--lr", "0.1"), "--lr 0.1, but the run in {} has 0.01: "),
        (("--hidden-size", "32"), "--hidden-size 32, but the run in {} has 16: "),
        (("--held-out-share", "0.5"), "--held-out-share 0.5, but the run in {} has 0.34: "),
        (("--init-from", "other"), "--init-from other, but the run in {} has "),
    ],
)
def test_another_recipe_is_not_resumed(
    run: tuple[Path, Path], options: tuple[str, str], wording: str
) -> None:
    data, folder = run
    before = (folder / "measured.json").read_bytes()
    line = told(train(data, folder, "--resume", *options))
    assert line.startswith(wording.format(folder))
    assert line.endswith("leave it out, or start anew in another folder")
    assert (folder / "measured.json").read_bytes() == before


def test_the_same_options_may_be_given_again(run: tuple[Path, Path]) -> None:
    data, folder = run
    done(train(data, folder, "--resume", "--steps", "4", "--lr", "1e-2", "--patience", "7"))


def test_other_data_is_not_resumed(run: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = run
    other = write(tmp_path / "other.jsonl", *WORDS[1:])
    assert told(train(other, folder, "--resume")).startswith(
        f"{other}: not the file that the run was started with: "
    )


def test_a_run_is_not_started_over_by_chance(run: tuple[Path, Path]) -> None:
    data, folder = run
    assert f"{folder}: holds step_4 of a training: go on with --resume" in told(train(data, folder))


# Starting from a checkpoint.


def test_sizes_and_conversion_are_the_checkpoints(run: tuple[Path, Path]) -> None:
    checkpoint = load_checkpoint(run[1])
    assert checkpoint.conversion == CONVERSION
    assert checkpoint.config == BASE.model_copy(update={"halt_exploration_prob": 0.5})


def test_training_starts_from_its_weights_and_enlarges_the_table(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(base.parent))
    data = write(tmp_path / "data.jsonl", "test", puzzle_id=11)
    options = ("--steps", "1", "--lr", "1e-12", "--puzzle-emb-lr", "0")
    done(train(data, tmp_path / "out", "--init-from", "base", "--forget", *options))
    before, after = (load_checkpoint(path).state for path in (base, tmp_path / "out"))
    table = after["puzzle_emb.weights"]
    assert torch.equal(table[:8], before["puzzle_emb.weights"])
    assert table[8:].tolist() == [[0.0] * 16] * 4
    for key in before.keys() - {"puzzle_emb.weights"}:
        torch.testing.assert_close(after[key], before[key], msg=key)


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (("--hidden-size", "32"), "--hidden-size 32, but base has 16: leave it out"),
        (("--num-heads", "4"), "--num-heads 4, but base has 2: leave it out"),
        (("--layers", "1"), "--layers 1, but base has 1 and 2: leave it out"),
        (("--puzzle-space", "9"), "--puzzle-space 9, but base has 8: leave it out"),
    ],
)
def test_other_sizes_than_the_checkpoints_are_refused(
    base: Path, tmp_path: Path, options: tuple[str, str], wording: str
) -> None:
    data = write(tmp_path / "data.jsonl", *WORDS)
    assert told(train(data, tmp_path / "out", "--init-from", str(base), *options)) == wording
    assert not (tmp_path / "out").exists()


# Holding out.


def test_what_is_held_out_is_measured_and_not_trained_on(run: tuple[Path, Path]) -> None:
    checkpoint, figures = load_checkpoint(run[1]), measured(run[1])
    assert checkpoint.training is not None
    assert len(checkpoint.training.pair_hashes) == 4
    assert checkpoint.training.accepted is not None
    assert len(checkpoint.training.accepted.texts.prompts) == 4
    for examples, count in (("training_examples", 4), ("held_out_examples", 2)):
        for halting in ("max_steps", "q"):
            assert figures[examples][halting]["examples"] == count
            assert figures[examples][halting]["solve_rate"]["of"] == count
    assert figures["held_out"] == 0.34


def test_held_out_examples_change_nothing_in_training(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *WORDS[:4])
    new = write(tmp_path / "new.jsonl", "monitoring")
    options = ("--init-from", str(base), "--forget", "--steps", "2", "--measure-every", "1")
    done(train(data, tmp_path / "without", *options))
    result = done(train(data, tmp_path / "with", *options, "--held-out", str(new)))
    assert "4 messages, 1 held out; " in result.stderr
    assert "  |  held out  max_steps: " in result.stderr
    digests = [load_checkpoint(tmp_path / name).digest for name in ("with", "without")]
    assert digests[0] == digests[1]
    assert measured(tmp_path / "with")["held_out_examples"]["q"]["examples"] == 1
    assert measured(tmp_path / "without")["held_out_examples"] is None
    write(new, "validation")
    assert told(train(data, tmp_path / "with", "--resume")).startswith(f"{new}: not the file")


def test_a_training_message_cannot_be_held_out(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *WORDS)
    held_out = write(tmp_path / "held_out.jsonl", *WORDS[:1])
    options = ("--init-from", str(base), "--forget", "--held-out", str(held_out))
    assert told(train(data, tmp_path / "out", *options)).startswith(f"{held_out}: line 1: ")
    both = told(train(data, tmp_path / "out", *options, "--held-out-share", "0.5"))
    assert both == "--held-out and --held-out-share: give one of them"
