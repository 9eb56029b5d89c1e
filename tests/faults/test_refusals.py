"""A Redis that refuses something for good: named at the start, and in the readiness later."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.processes import ROOT, STUB, Worker, wait_for
from tests.support.servers import Proxy
from tests.support.stubs import message
from worker.broker.app import EVALUATE_BATCH, create_app
from worker.broker.errors import RedisUnfit
from worker.broker.keys import LIVE_QUEUE, UNACKED
from worker.client import Client
from worker.delivery.requirements import NEEDED, WITHOUT_KEYS, Requirements
from worker.settings import Settings

NAMES = ["~sqe.*", "~sqe:*", "~celery-task-meta-*"]
CHANNELS = ["&celery-task-meta-*", "&sqe:reload*"]
COMMANDS = [f"+{name.lower()}" for name in NEEDED] + [
    "|".join(("+" + name.lower(), *(each.lower() for each in rest if each.isalpha())))
    for name, *rest in WITHOUT_KEYS
]

User = Callable[..., str]


@pytest.fixture
def user(store: redis.Redis, redis_url: str) -> User:
    """Gives the user `worker` these rules, and returns its URL."""

    def run(*rules: str) -> str:
        execute: Any = store.execute_command
        execute("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rules)
        return redis_url.replace("redis://", "redis://worker:secret@")

    return run


def start(url: str) -> str:
    """The one line of a worker that ends at its start, with status 1."""
    ended = subprocess.run(
        STUB,
        cwd=ROOT,
        env={**os.environ, "SQE_REDIS_URL": url, "SQE_METRICS_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    return line


def test_a_worker_works_with_the_permissions_that_are_checked(
    tmp_path: Path, user: User, client: Client, store: redis.Redis, redis_url: str
) -> None:
    optional = ["+info", "+client|setinfo", "+client|tracking", "+client|caching"]
    with Worker.start(STUB, tmp_path, user(*NAMES, *CHANNELS, *COMMANDS, *optional)) as worker:
        worker.wait_until_ready()
        sent = [client.submit(message(prompt)) for prompt in ("solve", "fail", "nan")]
        sent += client.submit_many(message() for _ in range(3))
        store.lpush(LIVE_QUEUE, b"no task")
        batch = [message().model_dump_json() for _ in range(3)]
        listed = create_app(redis_url).send_task(EVALUATE_BATCH, args=[batch])
        assert len(list(client.results(sent))) == 6
        assert len(listed.get(timeout=30)) == 3
        wait_for(lambda: not store.exists(UNACKED, LIVE_QUEUE), "all acknowledged")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert store.acl_log() == []


def test_a_worker_that_lacks_permissions_ends_and_names_them(user: User) -> None:
    assert start(user(*NAMES, *COMMANDS)) == (
        "sqe-hrm: error: the Redis user 'worker' may not run PUBLISH on 'celery-task-meta-*', "
        "PUBLISH on 'sqe:reload:*', SUBSCRIBE on 'sqe:reload': permit it with ACL SETUSER"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_missing_command_is_named(user: User, command: str) -> None:
    url = user(*NAMES, *CHANNELS, *COMMANDS, command.replace("+", "-"))
    name = command.strip("+").replace("|", " ")
    with redis.Redis.from_url(url) as client, pytest.raises(RedisUnfit) as caught:
        Requirements(Settings()).check(client)
    assert name in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("~sqe.*", "LINDEX on 'sqe.evaluate', "),
        ("~sqe:*", "HGET on 'sqe:unacked', "),
        ("~celery-task-meta-*", "SET on 'celery-task-meta-*': "),
    ],
)
def test_missing_names_are_shown_with_a_command(user: User, name: str, missing: str) -> None:
    url = user(*(each for each in NAMES if each != name), *CHANNELS, *COMMANDS)
    with redis.Redis.from_url(url) as client, pytest.raises(RedisUnfit) as caught:
        Requirements(Settings()).check(client)
    assert missing in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_wrong_password_ends_a_worker_at_its_start(user: User) -> None:
    line = start(user(*COMMANDS).replace("secret", "s3cret"))
    assert line.startswith("sqe-hrm: error: Redis answers: ")
    assert line.endswith("check the user in SQE_REDIS_URL")
    assert "s3cret" not in line


def test_a_redis_older_than_7_ends_a_worker_at_its_start(redis_url: str) -> None:
    def older(data: bytes) -> bytes:
        return data.replace(b"redis_version:7.2.4", b"redis_version:6.2.6")

    port = int(redis_url.rpartition(":")[2].removesuffix("/0"))
    with Proxy(port, rewrite=older).running() as old:
        line = start(f"redis://127.0.0.1:{old.port}/0")
    assert line == (
        "sqe-hrm: error: the Redis at SQE_REDIS_URL is version 6.2.6: "
        "use Redis 7 or later, or Valkey"
    )


@pytest.mark.parametrize(
    ("withdrawn", "reason"),
    [
        (("resetchannels",), "cannot store outcomes: Redis answers: "),
        (("-lindex",), "cannot take messages: "),
    ],
)
def test_a_permission_withdrawn_from_a_worker_shows_in_its_readiness_and_once_in_its_log(
    tmp_path: Path,
    user: User,
    client: Client,
    store: redis.Redis,
    withdrawn: tuple[str, ...],
    reason: str,
) -> None:
    rules = (*NAMES, *CHANNELS, *COMMANDS)
    with Worker.start(STUB, tmp_path, user(*rules)) as worker:
        worker.wait_until_ready()
        before = worker.log.read_text()
        user(*rules, *withdrawn)
        sent = [client.submit(message()) for _ in range(8)]
        wait_for(lambda: worker.get("/readyz")[1].startswith(reason), "not ready, with the reason")
        assert worker.get("/healthz") == (200, "alive\n")
        wait_for(lambda: worker.get("/readyz")[0] == 503, "still")
        errors = worker.total("errors_total")
        wait_for(lambda: worker.total("errors_total") >= errors + 3 or "take" in reason, "retries")
        user(*rules)
        assert len(list(client.results(sent))) == 8
        worker.wait_until_ready()
        wait_for(lambda: not store.exists(UNACKED), "all acknowledged")
        wait_for(lambda: worker.total("evaluations_total") == 8, "each counted once")
        lines = worker.log.read_text().removeprefix(before).splitlines()
        # Whoever listens to a channel is cut off with the permission, and has lines of its own.
        kept = [line for line in lines if "hear requests to reload" not in line]
        *refused, over = [line.split(" ", 2)[2] for line in kept]
        assert over.startswith("INFO can ")
        assert reason in refused[0]
        assert len(refused) == len(set(refused)) <= 2, "each reason once"


def test_what_redis_refuses_for_a_reason_of_its_own_is_asked_again_slowly(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        store.set(LIVE_QUEUE, "no list")
        wait_for(lambda: "cannot take messages" in worker.get("/readyz")[1], "not ready")
        connections = store.info("stats")["total_connections_received"]
        lines = len(worker.log.read_text().splitlines())
        wait_for(
            lambda: store.info("stats")["total_connections_received"] > connections + 3, "retries"
        )
        assert len(worker.log.read_text().splitlines()) == lines
        store.delete(LIVE_QUEUE)
        assert client.result(client.submit(message())).solved
        worker.wait_until_ready()
