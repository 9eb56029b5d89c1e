"""Another server takes over: by an address that moves while connections stay open, by Sentinel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import STUB, Worker, wait_for
from tests.support.servers import Proxy, Server, server
from tests.support.stubs import message
from worker.broker.keys import UNACKED
from worker.client import Client

SHORT = 1.0
"""The shortest visibility timeout."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with server(tmp_path) as primary, server(tmp_path) as replica:
        replica.follow(primary)
        wait_for(replica.is_following, "replicating")
        yield primary, replica


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
