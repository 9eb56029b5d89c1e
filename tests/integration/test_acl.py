"""The users of deploy/redis/users.acl, on a real server: what each may do, and what not."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.guide import example, run
from tests.support.processes import ROOT, STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.keys import DEAD_LETTERS, FAILURES, QUEUES, UNACKED, UNACKED_INDEX, result
from worker.client import BACKFILL_QUEUE, Client
from worker.client import asyncio as awaited

USERS = ROOT / "deploy" / "redis" / "users.acl"


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A server with these users, which knows nobody else."""
    socket, port = tmp_path / "admin.sock", embedded._free_port(0)
    users = tmp_path / "users.acl"
    users.write_text(USERS.read_text() + "user admin on nopass ~* &* +@all\n")
    options = ["--port", str(port), "--save", "", "--aclfile", str(users)]
    with subprocess.Popen([embedded._program(), *options, "--unixsocket", str(socket)]) as server:
        wait_for(socket.exists, "the server starts")
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


@pytest.fixture
def admin(redis_url: str, tmp_path: Path) -> Iterator[redis.Redis]:
    del redis_url
    with redis.Redis(unix_socket_path=str(tmp_path / "admin.sock"), username="admin") as admin:
        yield admin


def url(redis_url: str, user: str) -> str:
    return redis_url.replace("//", f"//{user}:{user.upper()}_PASSWORD@")


def test_agents_and_workers_need_no_more_than_the_file_gives(
    admin: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    async def also_awaited() -> None:
        async with awaited.Client(url(redis_url, "agent")) as agent:
            await agent.result(await agent.submit(message()))

    with (
        Worker.start(STUB, tmp_path, url(redis_url, "worker")) as worker,
        Client(url(redis_url, "agent")) as agent,
    ):
        worker.wait_until_ready()
        agent.result(agent.submit(message()))
        ids = agent.submit_many([message("fail"), message()], queue=BACKFILL_QUEUE)
        assert len(list(agent.results(ids))) == 2
        asyncio.run(also_awaited())
        code = example("python", "import Celery")
        assert run(code, redis_url=url(redis_url, "worker"))["verdict"]["solved"]
        # Nothing was refused. Without the channels, for example, a client would only be slower.
        assert admin.acl_log() == []


FORBIDDEN = (
    *(("LRANGE", queue, "0", "-1") for queue in QUEUES),
    *(("RPOP", queue) for queue in QUEUES),
    *(("LLEN", queue) for queue in QUEUES),
    *(("DEL", queue) for queue in QUEUES),
    *(("MGET", queue) for queue in QUEUES),
    ("RPUSH", QUEUES[0], "{}"),
    ("LPUSH", result("id"), "{}"),
    ("LPUSH", "celery", "{}"),
    ("SET", result("id"), "{}"),
    ("PUBLISH", result("id"), "{}"),
    ("SUBSCRIBE", "others"),
    ("PSUBSCRIBE", "*"),
    *(("XRANGE", stream, "-", "+") for stream in (FAILURES, DEAD_LETTERS)),
    *(("DEL", key) for key in (FAILURES, DEAD_LETTERS, UNACKED, UNACKED_INDEX)),
    ("ZRANGE", UNACKED_INDEX, "0", "-1"),
    ("HGETALL", UNACKED),
    ("EVAL", "return 1", "0"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("FLUSHALL",),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("INFO",),
    ("MONITOR",),
)


def test_an_agent_may_do_nothing_else(redis_url: str) -> None:
    with redis.Redis.from_url(url(redis_url, "agent")) as agent:
        for command in FORBIDDEN:
            with pytest.raises(redis.exceptions.NoPermissionError):
                agent.execute_command(*command)


def test_nobody_connects_without_a_name_and_a_password(redis_url: str) -> None:
    for wrong in (redis_url, redis_url.replace("//", "//agent:guess@")):
        with redis.Redis.from_url(wrong) as nobody, pytest.raises(redis.exceptions.RedisError):
            nobody.ping()
