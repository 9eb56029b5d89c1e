"""An outcome that a client returns is that of its own sending, never one stored before."""

from pathlib import Path

import pytest
import redis

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.network import HRM
from schemas import Rejection, RejectionReason, SQEMessage, Verdict
from tests.support.networks import FOR_MESSAGES
from tests.support.processes import REAL, STUB, Worker
from tests.support.stubs import message, verdict
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE, result
from worker.client import BrokerUnreachable, Client


def store_verdict(store: redis.Redis, of: SQEMessage) -> None:
    """Store a verdict as a worker does."""
    store.set(result(of.message_id), f'{{"result":{verdict(of).model_dump_json()}}}')


def digests(client: Client, sent: list[SQEMessage]) -> set[str]:
    """Send messages, half of them in a batch; return the digests that made their verdicts."""
    half = len(sent) // 2
    ids = [client.submit(each) for each in sent[:half]] + client.submit_many(sent[half:])
    outcomes = list(client.results(ids))
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    assert sorted(each.message_id for each in verdicts) == sorted(ids)
    return {each.checkpoint_digest for each in verdicts}


def test_after_a_change_of_checkpoint_the_same_ids_get_new_verdicts(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    sent = [message() for _ in range(20)]
    found = []
    for name in ("old", "new"):
        weights = HRM(FOR_MESSAGES).state_dict()
        save_checkpoint(tmp_path / name, weights, FOR_MESSAGES, ConversionConfig(), None)
        with Worker.start(
            REAL, tmp_path, redis_url, "--checkpoint", name, checkpoint_dir=tmp_path
        ) as worker:
            worker.wait_until_ready()
            found.append(digests(client, sent))
    old, new = found
    assert (len(old), len(new)) == (1, 1)
    assert old != new


def test_a_message_that_is_sent_again_does_not_get_its_old_rejection(
    client: Client, redis_url: str, store: redis.Redis, tmp_path: Path
) -> None:
    sent = message()
    rejection = Rejection(
        message_id=sent.message_id, reason=RejectionReason.TOO_LARGE, detail="the old one"
    )
    store.set(result(sent.message_id), f'{{"result":{rejection.model_dump_json()}}}')
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        assert client.result(client.submit(sent)).solved


@pytest.mark.parametrize("queue", [LIVE_QUEUE, BACKFILL_QUEUE])
def test_sending_discards_the_outcomes_stored_before_and_no_others(
    client: Client, store: redis.Redis, queue: str
) -> None:
    single, batched, other = message(), message(), message()
    for each in (single, batched, other):
        store_verdict(store, each)
    ids = [client.submit(single, queue=queue), *client.submit_many([batched], queue=queue)]
    assert client.poll([*ids, other.message_id]).keys() == {other.message_id}


def test_a_full_redis_refuses_the_message_and_keeps_the_outcome_stored_before(
    client: Client, store: redis.Redis
) -> None:
    sent = message("a secret prompt")
    store_verdict(store, sent)
    store.config_set("maxmemory", 1)
    with pytest.raises(BrokerUnreachable, match="maxmemory") as caught:
        client.submit(sent)
    assert "secret" not in str(caught.value)
    assert "Command" not in str(caught.value)
    assert client.poll([sent.message_id]).keys() == {sent.message_id}
