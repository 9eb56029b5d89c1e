"""Another server takes over: by an address that moves while connections stay open, by Sentinel."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import STUB, Worker, wait_for
from tests.support.servers import Proxy, Server, sentinel, server
from tests.support.stubs import message
from worker.broker.keys import UNACKED
from worker.client import BrokerUnreachable, Client
from worker.client import asyncio as awaited

SHORT = 1.0
"""The shortest visibility timeout."""


NAME = "primary"
"""What Sentinel calls the servers."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with server(tmp_path) as primary, server(tmp_path) as replica:
        replica.follow(primary)
        wait_for(replica.is_following, "replicating")
        yield primary, replica


@pytest.fixture
def sentinels(tmp_path: Path, pair: tuple[Server, Server]) -> Iterator[str]:
    """The URL of a Sentinel that watches both, behind another that does not answer."""
    with sentinel(tmp_path, NAME, pair[0]) as watching:
        state: Any = watching.store.sentinel_master
        wait_for(lambda: state(NAME)["num-slaves"] == 1, "Sentinel knows the replica")
        yield f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{watching.port}/0?master_name={NAME}"


def submit_until_it_works(client: Client) -> str:
    sent = message()

    def accepted() -> bool:
        try:
            client.submit(sent)
        except BrokerUnreachable:
            return False
        return True

    wait_for(accepted, "the failover")
    return sent.message_id


def test_a_full_worker_is_not_ready_while_its_primary_stays_demoted(
    tmp_path: Path, pair: tuple[Server, Server]
) -> None:
    primary, other = pair
    gate = tmp_path / "gate"
    with (
        Client(primary.url) as client,
        Worker.start(STUB, tmp_path, primary.url) as worker,
    ):
        worker.wait_until_ready()
        held = [client.submit(message(f"hold {gate}")) for _ in range(4)]
        wait_for(lambda: primary.store.hlen(UNACKED) == 4, "every slot taken")
        other.follow(None)
        primary.follow(other)
        wait_for(lambda: "read only replica" in worker.get("/readyz")[1], "not ready")
        assert worker.log.read_text().count("read only replica") == 1
        primary.follow(None)
        worker.wait_until_ready()
        gate.touch()
        assert len(list(client.results(held))) == 4


def test_open_connections_to_a_demoted_primary_are_made_anew(
    tmp_path: Path, pair: tuple[Server, Server]
) -> None:
    primary, replica = pair
    gate = tmp_path / "gate"
    with (
        Proxy(primary.port).running() as address,
        Client(f"redis://127.0.0.1:{address.port}/0") as client,
        Worker.start(
            STUB, tmp_path, f"redis://127.0.0.1:{address.port}/0", visibility_timeout=SHORT
        ) as worker,
    ):
        worker.wait_until_ready()
        held = [client.submit(message(f"hold {gate}")) for _ in range(4)]
        waiting = [client.submit(message()) for _ in range(20)]
        wait_for(lambda: primary.store.hlen(UNACKED) == 4, "every slot taken")
        wait_for(lambda: replica.store.hlen(UNACKED) == 4, "replicated")
        replica.follow(None)
        primary.follow(replica)
        address.target = replica.port
        gate.touch()
        later = [client.submit(message()) for _ in range(20)]
        sent = {*held, *waiting, *later}
        assert {each.message_id for each in client.results(sent, timeout=20)} == sent
        worker.wait_until_ready()
        wait_for(lambda: not replica.store.exists(UNACKED), "all acknowledged")
        assert worker.total("evaluations_total") == 44


def test_a_failover_by_sentinel_loses_no_message_that_replicas_confirmed(
    tmp_path: Path,
    pair: tuple[Server, Server],
    sentinels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary, replica = pair
    gate = tmp_path / "gate"
    monkeypatch.setenv("SQE_WAIT_REPLICAS", "1")
    with Client(sentinels) as careful:
        held = [careful.submit(message(f"hold {gate}")) for _ in range(4)]
        with Worker.start(
            STUB, tmp_path, sentinels, visibility_timeout=SHORT, wait_replicas=0
        ) as worker:
            worker.wait_until_ready()
            wait_for(lambda: primary.store.hlen(UNACKED) == 4, "every slot taken")
            waiting = [careful.submit(message()) for _ in range(100)]
            waiting += careful.submit_many(message() for _ in range(300))
            primary.signal(signal.SIGKILL)
            gate.touch()
            monkeypatch.setenv("SQE_WAIT_REPLICAS", "0")
            with Client(sentinels) as client:
                later = submit_until_it_works(client)
                sent = {*held, *waiting, later}
                assert {each.message_id for each in client.results(sent, timeout=20)} == sent
                wait_for(lambda: not replica.store.exists(UNACKED), "all acknowledged")
                assert asyncio.run(awaited_one(sentinels))
            worker.wait_until_ready()
            assert worker.total("evaluations_total") == len(sent) + 1


async def awaited_one(url: str) -> bool:
    async with awaited.Client(url) as client:
        return (await client.result(await client.submit(message()))).solved


def test_what_no_replica_confirms_is_neither_submitted_nor_stored(
    tmp_path: Path, pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = pair
    gate = tmp_path / "gate"
    monkeypatch.setenv("SQE_WAIT_REPLICAS", "1")
    with (
        Client(primary.url) as client,
        Worker.start(STUB, tmp_path, primary.url, wait_replicas=1) as worker,
    ):
        worker.wait_until_ready()
        held = client.submit(message(f"hold {gate}"))
        wait_for(lambda: primary.store.hlen(UNACKED) == 1, "taken")
        replica.follow(None)
        with pytest.raises(BrokerUnreachable, match=r"enqueued, but only 0 of 1 .*: send it again"):
            client.submit(message())
        gate.touch()
        reason = "cannot store outcomes: Redis answers: NOREPLICAS 0 of 1 replicas"
        wait_for(lambda: reason in worker.get("/readyz")[1], "not ready")
        assert primary.store.exists(UNACKED), "not acknowledged"
        replica.follow(primary)
        worker.wait_until_ready()
        assert client.result(held).solved
        wait_for(lambda: worker.total("evaluations_total") == 2, "each counted once")
        wait_for(lambda: not primary.store.exists(UNACKED), "acknowledged")
        assert worker.total("duplicates_total") == 0
