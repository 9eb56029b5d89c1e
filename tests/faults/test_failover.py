"""Replicas: a primary that stays demoted, outcomes that none confirms, and Sentinels."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import STUB, Worker, wait_for
from tests.support.servers import Server, pair, sentinel
from tests.support.stubs import message
from worker.broker.keys import UNACKED
from worker.client import BrokerUnreachable, Client
from worker.client import asyncio as awaited

SHORT = 1.0
"""The shortest visibility timeout."""


NAME = "primary"
"""The servers' name at the Sentinel."""


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with pair(tmp_path) as servers:
        yield servers


@pytest.fixture
def sentinels(tmp_path: Path, both: tuple[Server, Server]) -> Iterator[str]:
    """The URL of a Sentinel that watches both, behind another that does not answer."""
    with sentinel(tmp_path, NAME, both[0]) as watching:
        state: Any = watching.store.sentinel_master
        wait_for(lambda: state(NAME)["num-slaves"] == 1, "Sentinel knows the replica")
        yield f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{watching.port}/0?master_name={NAME}"


def test_a_full_worker_is_not_ready_while_its_primary_stays_demoted(
    tmp_path: Path, both: tuple[Server, Server]
) -> None:
    primary, other = both
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


def test_clients_find_the_primary_through_sentinels(tmp_path: Path, sentinels: str) -> None:
    with Client(sentinels) as client, Worker.start(STUB, tmp_path, sentinels):
        assert client.result(client.submit(message())).solved
        assert asyncio.run(awaited_one(sentinels))


async def awaited_one(url: str) -> bool:
    async with awaited.Client(url) as client:
        return (await client.result(await client.submit(message()))).solved


def test_what_no_replica_confirms_is_neither_submitted_nor_stored(
    tmp_path: Path, both: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = both
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
