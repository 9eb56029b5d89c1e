"""Four accepted pairs, then two more: by the command line, and nothing is forgotten."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from tests.support.commands import no_gpu, no_plots, refusal
from tests.support.evaluations import write_jsonl
from tests.support.networks import tiny
from worker.cli.main import cli

__all__ = ["no_gpu", "no_plots"]

SUBJECTS = ("queue", "worker", "router", "ledger", "sensor", "broker")
PAIRS = [
    {"prompt": f"Test the {subject}", "completion": f"monitor {subject} {number} times"}
    for number, subject in enumerate(SUBJECTS)
]
OLD, NEW = PAIRS[:4], PAIRS[4:]
RECIPE = (
    *("--measure-every", "50", "--lr", "0.01", "--lr-warmup-steps", "10", "--device", "cpu"),
    *("--weight-decay", "0.1", "--puzzle-emb-lr", "0.05", "--ema-decay", "0.9"),
    *("--forward-dtype", "float32"),
)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def sqe_hrm(*arguments: str | Path) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the checkpoint `old`, trained on four pairs, and `next`, trained on two more."""
    folder = tmp_path_factory.mktemp("further")
    # A new network would have 100 positions and take minutes.
    sizes = {"hidden_size": 32, "puzzle_emb_ndim": 32, "H_cycles": 1, "L_cycles": 1, "seq_len": 8}
    config = tiny(**sizes, num_puzzle_identifiers=64, halt_max_steps=2)
    torch.manual_seed(0)
    conversion = ConversionConfig(puzzle_space=64)
    save_checkpoint(folder / "base", HRM(config).state_dict(), config, conversion, None)
    for name, base, lines in (("old", "base", OLD), ("next", "old", NEW)):
        data = write_jsonl(folder / f"{name}.jsonl", *lines)
        forget = ("--forget",) if base == "base" else ()
        result = sqe_hrm(
            *("train", "--data-path", data, "--output", folder / name, "--steps", "300"),
            *("--init-from", folder / base, *forget, *RECIPE),
        )
        (folder / f"{name}.out").write_text(result.stdout)
        (folder / f"{name}.err").write_text(result.stderr)
    return folder


def test_the_first_line_says_what_is_replayed_and_the_last_ones_what_is_solved(
    folder: Path,
) -> None:
    first = (folder / "next.err").read_text().splitlines()[0]
    assert first.startswith("2 new messages, 4 replayed from old; ")
    assert (folder / "next.out").read_text().splitlines()[-2:] == [
        f"{folder / 'next'}: max_steps: new 2 of 2, replayed 4 of 4",
        f"{folder / 'next'}: q: new 2 of 2, replayed 4 of 4",
    ]
    assert (
        (folder / "old.err")
        .read_text()
        .startswith("4 messages; all prompts that base knows become unknown; ")
    )


@pytest.mark.parametrize("halting", ["max_steps", "q"])
def test_all_six_are_known_and_solved(folder: Path, tmp_path: Path, halting: str) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", *PAIRS)
    report: dict[str, Any] = json.loads(
        sqe_hrm(
            *("evaluate", "--checkpoint", folder / "next", "--data-path", data),
            *("--halting", halting, "--device", "cpu", "--json"),
        ).stdout
    )
    known = report["by_known"]["known"]
    assert (known["examples"], known["solved"]["count"]) == (6, 6)
    assert report["by_text"]["same"]["examples"] == 6


def test_the_new_checkpoint_can_be_trained_further_again(folder: Path, tmp_path: Path) -> None:
    inspected = json.loads(sqe_hrm("checkpoint", "inspect", folder / "next", "--json").stdout)
    assert inspected["accepted_pairs"] == {"pairs": 6, "solved": {"max_steps": 6, "q": 6}}
    changed = write_jsonl(tmp_path / "more.jsonl", {**OLD[0], "completion": "never"})
    result = call(
        *("train", "--data-path", changed, "--output", tmp_path / "out"),
        *("--init-from", folder / "next", "--steps", "1", *RECIPE),
    )
    assert result.stderr == (
        f"{changed}: line 1 and a pair that the checkpoint holds: two completions for one prompt\n"
    )
    assert f"{changed}: contradicting completions for one prompt in 1 lines" in refusal(result)
    assert not (tmp_path / "out").exists()
