"""A checkpoint's life by the command line: trained, promoted, served, trained further, refused."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from click.testing import CliRunner

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.checkpoint.registry import REGISTRY
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from schemas import PromptMatch, SQEHRMError, SQEMessage, TextCheck
from tests.support.commands import no_gpu, no_plots
from tests.support.evaluations import write_jsonl
from tests.support.networks import saved_for_messages, tiny
from tests.support.processes import DEADLINE, REAL, Worker
from worker.broker.keys import DEAD_LETTERS
from worker.cli.main import cli
from worker.client import Client

__all__ = ["no_gpu", "no_plots"]

SUBJECTS = ("queue", "worker", "router", "ledger", "sensor", "broker", "planner", "parser")
LATER = ("scanner", "gateway", "loader")
OLD = [{"prompt": f"Test the {s}", "completion": f"monitor the {s} and report"} for s in SUBJECTS]
NEW = [{"prompt": f"Test the {s}", "completion": f"deploy the {s} again"} for s in LATER]
OTHER = [{"prompt": f"Check the {s}", "completion": f"send {s} data"} for s in SUBJECTS[:5]]
SIZES = {"hidden_size": 32, "puzzle_emb_ndim": 32, "H_cycles": 1, "L_cycles": 1, "seq_len": 8}
RECIPE = (
    *("--steps", "350", "--measure-every", "50", "--lr", "0.01", "--lr-warmup-steps", "10"),
    *("--weight-decay", "0.1", "--puzzle-emb-lr", "0.05", "--ema-decay", "0.9"),
    *("--forward-dtype", "float32", "--device", "cpu"),
)


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> tuple[dict[str, Any], str]:
    """The report that a refused promotion prints, and its one line on stderr."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert isinstance(result.exception, SQEHRMError), result.output
    return json.loads(result.stdout), str(result.exception)


def train(
    folder: Path, name: str, parent: str | Path, *pairs: dict[str, str], forget: bool = False
) -> None:
    data = write_jsonl(folder / f"{name}.jsonl", *pairs)
    call(
        *("train", "--data-path", data, "--output", folder / "checkpoints" / name),
        *("--init-from", parent, *RECIPE, *(("--forget",) if forget else ())),
    )


def solved(data: Path, checkpoint: str = "current") -> tuple[str, int, int]:
    """The name of the checkpoint in the report, and how many lines are solved and known."""
    report = json.loads(
        call(
            *("evaluate", "--checkpoint", checkpoint, "--data-path", data),
            *("--device", "cpu", "--json"),
        )
    )
    known = report["by_known"]["known"]["examples"]
    return report["setting"]["checkpoint"], report["overall"]["solved"]["count"], known


def test_what_was_accepted_stays_solved_until_a_person_accepts_its_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
    store: redis.Redis,
    client: Client,
) -> None:
    folder = tmp_path / "checkpoints"
    registry = folder / REGISTRY
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    # A new network would have 100 positions and take minutes.
    config = tiny(**SIZES, num_puzzle_identifiers=64, halt_max_steps=2)
    torch.manual_seed(0)
    conversion = ConversionConfig(puzzle_space=64)
    save_checkpoint(tmp_path / "base", HRM(config).state_dict(), config, conversion, None)

    # The first pairs are accepted.
    train(tmp_path, "first", tmp_path / "base", *OLD, forget=True)
    assert "current: first (" in call("checkpoint", "promote", "first")
    assert solved(tmp_path / "first.jsonl") == ("first", 8, 8)

    # More arrive: training further replays those that are held, and writes over none.
    with pytest.raises(SQEHRMError, match=r"first: holds first \(\w{12}\), which was promoted"):
        train(tmp_path, "first", "current", *OLD, *NEW)
    train(tmp_path, "next", "current", *NEW)
    shown = json.loads(
        call("checkpoint", "promote", "next", "--data-path", tmp_path / "next.jsonl", "--json")
    )
    assert [
        (each["pairs"], each["both"], each["only_new"], each["only_old"])
        for each in shown["figures"]
    ] == [(11, 8, 3, 0)] * 2
    assert (shown["promoted"], shown["decision"], shown["lost"]) == (True, "nothing lost", [])
    every = write_jsonl(tmp_path / "every.jsonl", *OLD, *NEW)
    assert solved(every) == ("next", 11, 11)

    # A worker serves what is current, under its own name.
    digest = load_checkpoint(folder / "next").digest
    with Worker.start(
        REAL, tmp_path, redis_url, "--checkpoint", "current", checkpoint_dir=folder
    ) as worker:
        worker.wait_until_ready()
        sent = [SQEMessage.create(agent_id="a", **pair) for pair in (*OLD, *NEW)]
        client.submit_many(sent)
        verdicts = [client.result(each.message_id) for each in sent]
        metrics = worker.metrics()
    assert {(each.solved, each.match, each.text) for each in verdicts} == {
        (True, PromptMatch.PAIR, TextCheck.SAME)
    }
    assert {(each.checkpoint, each.checkpoint_digest) for each in verdicts} == {("next", digest)}
    assert metrics[f"checkpoint_info{{checkpoint=next}}{{digest={digest}}}"] == 1
    assert store.xlen(DEAD_LETTERS) == 0

    # One that forgot them is refused, and nothing changes.
    train(tmp_path, "forgetful", "current", *OTHER, forget=True)
    before = registry.read_bytes()
    report, line = refused("checkpoint", "promote", "forgetful")
    assert line == (
        f"forgetful is not promoted, because it loses 11 pairs of next ({digest[:12]}): train "
        "it from there with --init-from, or promote it all the same with --accept-losses"
    )
    assert {(each["loss"], *each["rules"]) for each in report["lost"]} == {
        ("unknown", "max_steps", "q")
    }
    assert {each["pair"] for each in report["lost"]} == set(
        load_checkpoint(folder / "next").training.pair_hashes  # type: ignore[union-attr]
    )
    assert registry.read_bytes() == before
    assert solved(every)[0] == "next"

    # A person accepts the loss, and goes back.
    shown = json.loads(call("checkpoint", "promote", "forgetful", "--accept-losses", "--json"))
    assert shown["decision"] == "accepted loss of 11 pairs: --accept-losses"
    assert solved(every)[0::2] == ("forgetful", 0)
    assert call("checkpoint", "rollback").startswith(
        f"current: next ({digest[:12]}), was forgetful"
    )
    assert solved(every) == ("next", 11, 11)
    assert call("checkpoint", "rollback").startswith("current: first (")
    history = json.loads(call("checkpoint", "history", "--json"))["history"]
    assert [(each["action"], each["checkpoint"]["name"]) for each in history] == [
        ("promote", "first"),
        ("promote", "next"),
        ("promote", "forgetful"),
        ("rollback", "next"),
        ("rollback", "first"),
    ]


def ended(folder: Path, redis_url: str) -> str:
    """The one line of a worker that ends at its start, with status 1."""
    done = subprocess.run(
        REAL,
        cwd=folder,
        env={
            **os.environ,
            "SQE_CHECKPOINT": "current",
            "SQE_CHECKPOINT_DIR": str(folder / "checkpoints"),
            "SQE_REDIS_URL": redis_url,
            "SQE_METRICS_PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_worker_without_the_promoted_weights_ends_at_its_start_in_one_line(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    assert ended(tmp_path, redis_url) == (
        f"sqe-hrm: error: nothing is promoted in {folder}, so there is no current checkpoint: "
        "promote one with sqe-hrm checkpoint promote NAME, or name one"
    )
    saved_for_messages(folder / "mine")
    call("checkpoint", "promote", "mine")
    saved_for_messages(folder / "mine")  # trained over
    line = ended(tmp_path, redis_url)
    assert line.startswith(f"sqe-hrm: error: {folder / 'mine'}: holds ")
    assert "was promoted: restore it, go back with sqe-hrm checkpoint rollback, or" in line
    (folder / "mine").rename(folder / "moved")
    assert "mine: gone, but mine (" in ended(tmp_path, redis_url)
