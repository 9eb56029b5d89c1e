"""A real worker that is told no halting rule, and takes the one that the figures support."""

from pathlib import Path

from hrm.data.conversion import AcceptedPair
from hrm.data.files import DEFAULT_READER
from schemas import HaltedBy, SQEMessage
from tests.support.processes import REAL, ROOT, Worker
from worker.client import Client

MESSAGES = ROOT / "checkpoints" / "sqe-demo" / "messages.jsonl"


def test_a_worker_halts_by_q_where_recorded_figures_support_it(
    tmp_path: Path, redis_url: str, client: Client
) -> None:
    with MESSAGES.open("rb") as file:
        pairs = [each for _, each in DEFAULT_READER.messages(file)]
    sent = [
        SQEMessage.create(agent_id="a", prompt=pair.prompt, completion=pair.completion)
        for pair in pairs[:8]
        if isinstance(pair, AcceptedPair)
    ]
    with Worker.start(REAL, tmp_path, redis_url, "--checkpoint", "sqe-demo") as worker:
        worker.wait_until_ready()
        client.submit_many(sent)
        verdicts = [client.result(each.message_id) for each in sent]
        (info,) = (name for name in worker.metrics() if name.startswith("engine_info"))
        log = worker.log.read_text()
    assert "halting auto chose q: solves 84 of 84, as under 16 fixed steps, " in log
    assert ", halting q, " in log
    assert info.endswith("{halting=q}")
    assert {(each.solved, each.halted_by) for each in verdicts} == {(True, HaltedBy.Q)}
    assert max(each.act_steps for each in verdicts) < 16
