"""A real worker that serves several checkpoints as one."""

from pathlib import Path

import redis

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble
from hrm.evaluation.evaluator import Evaluator
from hrm.inference.config import Inference
from hrm.model.network import HRM
from tests.support.networks import FOR_MESSAGES
from tests.support.processes import REAL, Worker
from tests.support.stubs import message
from worker.broker.keys import DEAD_LETTERS
from worker.client import Client


def test_a_worker_answers_as_the_ensemble_does_under_its_name_and_digest(
    tmp_path: Path, redis_url: str, store: redis.Redis, client: Client
) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("a", "b"):
        save_checkpoint(
            folder / name, HRM(FOR_MESSAGES).state_dict(), FOR_MESSAGES, ConversionConfig(), None
        )
    members = [load_checkpoint(folder / name) for name in ("a", "b")]
    ensemble = Ensemble(members, Strategy.VOTING, [1, 2])
    options = ["--checkpoints", "a", "b", "--weights", "1", "2", "--strategy", "voting"]
    options += ["--dtype", "float32"]  # as the ensemble beside it
    sent = [message(prompt=f"test number {number}") for number in range(20)]
    with Worker.start(REAL, tmp_path, redis_url, *options, checkpoint_dir=folder) as worker:
        worker.wait_until_ready()
        client.submit_many(sent)
        verdicts = [client.result(each.message_id) for each in sent]
        metrics = worker.metrics()
        log = worker.log.read_text()
    predictor = ensemble.open(Inference(slots=4), "cpu")
    local = Evaluator(ensemble, predictor, device="cpu", worker="here")
    wanted = {
        each.message_id: local.submit(each.model_dump_json()).result(30).verdict.predicted_sequence
        for each in sent
    }
    local.close()
    assert {each.message_id: each.predicted_sequence for each in verdicts} == wanted
    assert {(each.checkpoint, each.checkpoint_digest) for each in verdicts} == {
        ("ensemble(a+b)", ensemble.digest)
    }
    assert store.xlen(DEAD_LETTERS) == 0
    assert metrics[f"checkpoint_info{{checkpoint=ensemble(a+b)}}{{digest={ensemble.digest}}}"] == 1
    assert "halting auto chose fixed steps: a: no figures recorded, " in log
    assert f"checkpoint ensemble(a+b) ({ensemble.digest[:12]}) on cpu with " in log
