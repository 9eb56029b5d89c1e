"""A real worker changes its checkpoint under load, and tests its own answers."""

import json
import re
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from hrm.checkpoint import load_checkpoint
from hrm.evaluation.evaluator import Evaluator
from hrm.inference.config import Inference
from schemas import Rejection, SQEMessage, Verdict
from tests.support.commands import no_gpu, refusal
from tests.support.processes import DEADLINE, REAL, Worker, wait_for
from tests.support.promotions import EARLY, LATE, saved_with, solved_by
from tests.support.stubs import message
from worker.broker.keys import DEAD_LETTERS
from worker.cli.main import cli
from worker.client import BACKFILL_QUEUE, Client

__all__ = ["no_gpu"]

WRONG = {key: tensor * 0.5 for key, tensor in EARLY.items()}
"""Weights that solve nothing of what `EARLY` solves."""

AT_ONCE = 60
"""Messages of each queue in a sending. Two sendings wait at a time, more than a worker holds."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints `early` and `late`, which solve their pairs, and two that cannot be used."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    solved = solved_by(EARLY, 12)
    saved_with(folder / "early", EARLY, solved, recorded=True)
    saved_with(folder / "late", LATE, solved_by(LATE, 12), recorded=True)
    saved_with(folder / "wrong", WRONG, solved, recorded=True)
    (folder / "damaged.safetensors").write_bytes(b"no weights")
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def asked(number: int) -> SQEMessage:
    # A few dozen prompts, so that the cache answers most of them.
    return message(f"run test {number % 40}", puzzle_id=number % 5)


class Load(threading.Thread):
    """Keeps messages of both queues waiting until it is stopped, and collects their outcomes."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(daemon=True)
        self._redis_url = redis_url
        self._stopped = threading.Event()
        self.sent: dict[str, SQEMessage] = {}
        self.outcomes: list[Verdict | Rejection] = []

    def run(self) -> None:
        with Client(self._redis_url) as client:
            before = self._send(client)
            while not self._stopped.is_set():
                ids = self._send(client)
                self.outcomes += client.results(before, timeout=DEADLINE)
                before = ids
            self.outcomes += client.results(before, timeout=DEADLINE)

    def _send(self, client: Client) -> list[str]:
        messages = [asked(len(self.sent) + number) for number in range(2 * AT_ONCE)]
        self.sent.update((each.message_id, each) for each in messages)
        return [
            *(client.submit(each) for each in messages[:AT_ONCE]),
            *client.submit_many(messages[AT_ONCE:], queue=BACKFILL_QUEUE),
        ]

    def goes_on(self) -> None:
        """Wait until outcomes have arrived that are new."""
        seen = len(self.outcomes)
        wait_for(lambda: len(self.outcomes) > seen + 4 * AT_ONCE, "outcomes of what serves now")

    def finish(self) -> list[Verdict]:
        self._stopped.set()
        self.join(DEADLINE)
        assert not self.is_alive()
        verdicts = [each for each in self.outcomes if isinstance(each, Verdict)]
        assert len(verdicts) == len(self.outcomes) == len(self.sent)
        assert {each.message_id for each in verdicts} == self.sent.keys()
        return verdicts


def predictions(folder: Path, name: str) -> dict[tuple[str, int | None], tuple[int, ...]]:
    """The checkpoint's prediction for each prompt and puzzle, computed here."""
    checkpoint = load_checkpoint(folder / name)
    engine = Inference(slots=4).open(checkpoint, "cpu")
    with closing(Evaluator(checkpoint, engine, device="cpu", worker="here")) as evaluator:
        pending = [
            (each, evaluator.submit(each.model_dump_json())) for each in map(asked, range(40))
        ]
        return {
            (each.prompt, each.puzzle_id): one.result(DEADLINE).verdict.predicted_sequence
            for each, one in pending
        }


def reloads(worker: Worker) -> dict[str, float]:
    metrics = worker.metrics()
    return {
        name: metrics[f"reloads_total{{result={name}}}"]
        for name in ("reloaded", "already_serving", "refused")
    }


def serving(worker: Worker) -> list[str]:
    return [name for name in worker.metrics() if name.startswith("checkpoint_info")]


def test_checkpoints_change_under_load_and_no_verdict_is_lost_or_anothers(
    tmp_path: Path,
    folder: Path,
    redis_url: str,
    store: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", redis_url)
    digests = {name: load_checkpoint(folder / name).digest for name in ("early", "late")}
    assert call("checkpoint", "promote", "early").exit_code == 0
    options = ("--dtype", "float32", "--checkpoint", "current")
    with Worker.start(REAL, tmp_path, redis_url, *options, checkpoint_dir=folder) as worker:
        worker.wait_until_ready()
        assert worker.metrics()["self_test_solved_ratio"] == 1
        load = Load(redis_url)
        load.start()
        load.goes_on()

        # What was promoted, by a signal.
        assert call("checkpoint", "promote", "late", "--accept-losses").exit_code == 0
        worker.signal(signal.SIGHUP)
        wait_for(lambda: reloads(worker)["reloaded"] == 1, "reloaded")
        load.goes_on()
        assert serving(worker) == [
            f"checkpoint_info{{checkpoint=late}}{{digest={digests['late']}}}"
        ]

        # What cannot be used: the one before serves on.
        for name, reason in (
            ("nonesuch", "no checkpoint 'nonesuch'"),
            ("damaged", "damaged.safetensors: not a checkpoint"),
            ("wrong", "this worker gives wrong answers: 8 of 8 known pairs of wrong"),
        ):
            refused = call("worker", "reload", "--checkpoint", name)
            assert refusal(refused) == "workers: 1 of 1 refused and serve on as before"
            (line,) = [each for each in refused.stdout.splitlines() if reason in each]
            assert line.startswith(f"{worker.name}: ")
            assert worker.is_ready()
        load.goes_on()
        assert serving(worker)[0].startswith("checkpoint_info{checkpoint=late}")

        # Another by name, by a command.
        answer = {
            "worker": worker.name,
            "result": "reloaded",
            "serving": f"early ({digests['early'][:12]})",
            "before": f"late ({digests['late'][:12]})",
            "reason": None,
        }
        done = call("worker", "reload", "--checkpoint", "early", "--json")
        assert json.loads(done.stdout) == {"asked": 1, "answers": [answer]}
        load.goes_on()
        again = call("worker", "reload", "--checkpoint", "early")
        assert again.exit_code == 0
        words = " ".join(again.stdout.split())
        assert f"{worker.name} already serving early ({digests['early'][:12]}) -" in words

        verdicts = load.finish()
        assert reloads(worker) == {"reloaded": 2, "already_serving": 1, "refused": 3}
        assert worker.total("evaluations_total") == len(verdicts)
        assert worker.metrics()["duplicates_total"] == 0
        log = worker.log.read_text()
    assert store.xlen(DEAD_LETTERS) == 0
    predicted = {digests[name]: predictions(folder, name) for name in digests}
    for verdict in verdicts:
        sent = load.sent[verdict.message_id]
        own = predicted[verdict.checkpoint_digest][sent.prompt, sent.puzzle_id]
        assert verdict.predicted_sequence == own
    by_name = {each.checkpoint: each.checkpoint_digest for each in verdicts}
    assert by_name == digests
    assert len(re.findall(r" ERROR .*reload refused, late \(\w+\) serves on: ", log)) == 3
    assert "Traceback" not in log
