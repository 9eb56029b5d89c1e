"""A real worker that changes its checkpoint again and again under load keeps one in memory."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from schemas import Rejection, Verdict
from tests.support.networks import FOR_MESSAGES
from tests.support.processes import DEADLINE, REAL, Worker, wait_for
from tests.support.stubs import message
from worker.cli.main import cli
from worker.client import Client

MB = 1_000_000

PUZZLES = 1_200_000
"""Rows of the table, which takes 77 MB. glibc may keep a block of up to 64 MB that a thread freed,
so smaller tables would sometimes show one copy more."""

LARGE = FOR_MESSAGES.model_copy(update={"num_puzzle_identifiers": PUZZLES})
"""A network whose table of puzzles takes most of its memory, as in real checkpoints."""

COPY = PUZZLES * LARGE.puzzle_emb_ndim * 4
"""Bytes of that table in float32."""

RELOADS = 6
"""Each would leave a copy behind if it were not freed."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoints `0` and `1`."""
    torch.manual_seed(0)
    state = HRM(LARGE).state_dict()
    for name in "01":
        state["puzzle_emb.weights"] = torch.randn_like(state["puzzle_emb.weights"])
        save_checkpoint(tmp_path / "both" / name, state, LARGE, ConversionConfig(), None)
    return tmp_path / "both"


FREED = "the memory of the checkpoint before is free"


Outcomes = list[Verdict | Rejection]


def load(client: Client, stopped: Callable[[], bool], answered: Outcomes) -> None:
    """Keep messages in the worker's hand."""
    number = 0
    while not stopped():
        number += 1
        sent = [message(f"prompt {number} {each}") for each in range(50)]
        ids = client.submit_many(sent)
        answered += client.results(ids, timeout=DEADLINE)


def after_reload(number: int, worker: Worker, answered: Outcomes) -> float:
    """The worker's resident bytes once the other checkpoint serves and the one before is freed."""
    seen = len(answered)
    wait_for(lambda: len(answered) > seen, "under load")
    done = CliRunner().invoke(cli, ["worker", "reload", "--checkpoint", str(number % 2)])
    assert done.exit_code == 0, done.output
    wait_for(lambda: worker.log.read_text().count(FREED) == number, FREED)
    return worker.metrics()["process_resident_memory_bytes"]


def test_the_checkpoints_that_served_before_leave_no_memory_behind(
    folder: Path, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", redis_url)
    stop, answered = threading.Event(), Outcomes()
    options = ("--checkpoint", "0", "--dtype", "float32", "--threads", "1")
    with (
        Client(redis_url) as client,
        Worker.start(REAL, tmp_path, redis_url, *options, checkpoint_dir=folder) as worker,
    ):
        worker.wait_until_ready()
        busy = threading.Thread(target=load, args=(client, stop.is_set, answered), daemon=True)
        busy.start()
        after = [after_reload(number, worker, answered) for number in range(1, RELOADS + 1)]
        stop.set()
        busy.join(DEADLINE)
        assert not busy.is_alive()
    # The first reload frees what only loading needed, too.
    assert max(after) - after[0] < COPY, [round(each / MB) for each in after]
