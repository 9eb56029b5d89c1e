"""A Redis that restarts, freezes, refuses writes, is full, or hands over to another."""

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scene import Scene
from tests.support.processes import Worker, wait_for
from tests.support.servers import Proxy, Server, pair, sentinel, server

DURABLE = ("--appendonly", "yes", "--appendfsync", "no")
"""A killed server loses nothing that it has confirmed: it writes everything at once, and the system
keeps it. With `everysec`, it would put off writing while a slow disk is at work."""

NAME = "primary"
"""The servers' name at the Sentinel."""

RESTARTED = 3.0
"""Visibility timeout that is longer than a restart."""


def restarted(folder: Path, size: Size) -> Row:
    """Redis killed and stopped in turn, under load, and started again."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(contextlib.ExitStack())
        redis_server = running.enter_context(server(folder, *DURABLE))
        at = stack.enter_context(Scene(folder, redis_server.url))
        workers = [at.start(visibility_timeout=RESTARTED).wait_until_ready() for _ in range(2)]
        with at.traffic(seconds=0.02):
            for repetition in range(size.repetitions):
                at.send(size.messages, seconds=0.02)
                at.wait_in_hand()
                redis_server.signal(signal.SIGTERM if repetition % 2 else signal.SIGKILL)
                running.close()
                for worker in workers:
                    wait_for(functools.partial(is_cut_off, worker), "not ready without Redis")
                redis_server = running.enter_context(
                    server(folder, *DURABLE, port=redis_server.port)
                )
                at.consumes_again()
                for worker in workers:
                    wait_for(worker.is_ready, "ready again")
        return at.close(size.repetitions)


def is_cut_off(worker: Worker) -> bool:
    status, reason = worker.get("/readyz")
    return status == 503 and "Redis is not reachable" in reason and worker.get("/healthz")[0] == 200


def frozen(folder: Path, size: Size) -> Row:
    """SIGSTOP: connections stay open, and nothing answers."""
    with server(folder) as redis_server, Scene(folder, redis_server.url) as at:
        at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.02)
                at.wait_in_hand()
                redis_server.signal(signal.SIGSTOP)
                time.sleep(size.seconds)
                redis_server.signal(signal.SIGCONT)
                at.consumes_again()
        return at.close(size.repetitions)


def read_only(folder: Path, size: Size) -> Row:
    """Redis becomes a replica for a while: it answers, and refuses every write."""
    with server(folder) as redis_server, Scene(folder, redis_server.url) as at:
        worker = at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.02)
                at.wait_in_hand()
                make_read_only(redis_server)
                wait_for(lambda: "read only replica" in worker.get("/readyz")[1], "not ready")
                time.sleep(size.seconds)
                redis_server.follow(None)
                at.consumes_again()
                wait_for(worker.is_ready, "ready again")
        return at.close(size.repetitions)


def make_read_only(redis_server: Server) -> None:
    """Make it the replica of nobody, so that it keeps what it has."""
    redis_server.store.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]


def full(folder: Path, size: Size) -> Row:
    """No memory is free: nothing is accepted, and a worker that starts takes out what is there."""
    with server(folder) as redis_server, Scene(folder, redis_server.url) as at:
        worker = at.start().wait_until_ready()
        for _ in range(size.repetitions):
            at.send(size.messages, seconds=0.02)
            at.wait_in_hand()
            redis_server.store.config_set("maxmemory", "100kb")
            with at.traffic():
                at.stop(worker, signal.SIGKILL)
                worker = at.start()
                at.drain()
                time.sleep(size.seconds)
                redis_server.store.config_set("maxmemory", "0")
                at.consumes_again()
        return at.close(size.repetitions)


@contextlib.contextmanager
def confirmed_by(replicas: int) -> Iterator[None]:
    """Clients that are made in this block wait for replicas."""
    with patch.dict(os.environ, SQE_WAIT_REPLICAS=str(replicas)):
        yield


def handed_over(folder: Path, size: Size) -> Row:
    """REPLICAOF turns primary and replica round; connections to the demoted one stay open."""
    with (
        pair(folder) as both,
        Proxy(both[0].port).running() as address,
        confirmed_by(1),
        Scene(folder, f"redis://127.0.0.1:{address.port}/0") as at,
    ):
        worker = at.start(wait_replicas=1).wait_until_ready()
        with at.traffic(seconds=0.02):
            for repetition in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand()
                replica, promoted = both[repetition % 2], both[repetition % 2 - 1]
                promoted.follow(None)
                replica.follow(promoted)
                address.target = promoted.port
                at.consumes_again()
                wait_for(replica.is_following, "replicating")
                wait_for(worker.is_ready, "ready again")
        return at.close(size.repetitions)


def failed_over(folder: Path, size: Size) -> Row:
    """The primary is killed, a Sentinel promotes the replica, and the killed one starts again."""
    with contextlib.ExitStack() as stack:
        primary, replica = stack.enter_context(pair(folder))
        watching = stack.enter_context(sentinel(folder, NAME, primary))
        state: Any = watching.store.sentinel_master
        wait_for(lambda: state(NAME)["num-slaves"] == 1, "Sentinel knows the replica")
        stack.enter_context(confirmed_by(1))
        url = f"sentinel://127.0.0.1:{watching.port}/0?master_name={NAME}"
        at = stack.enter_context(Scene(folder, url))
        worker = at.start(wait_replicas=1).wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand()
                primary.signal(signal.SIGKILL)
                killed = time.monotonic()
                wait_for(functools.partial(is_primary, replica), "promoted")
                end = at.fault_ended()
                # Outcomes have to be confirmed by a replica.
                following = ("--replicaof", "127.0.0.1", str(replica.port))
                again = stack.enter_context(server(folder, *following, port=primary.port))
                at.consumes_again(dataclasses.replace(end, time=killed))
                wait_for(functools.partial(is_a_pair, again, replica), "replicating")
                wait_for(worker.is_ready, "ready again")
                # To a Sentinel, a primary on a busy machine may seem dead, too.
                primary, replica = sorted((again, replica), key=Server.is_following)
        return at.close(size.repetitions)


def is_a_pair(one: Server, other: Server) -> bool:
    return one.is_following() or other.is_following()


def is_primary(redis_server: Server) -> bool:
    role: Any = redis_server.store.info("replication")["role"]
    return bool(role == "master")
