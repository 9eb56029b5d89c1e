"""The users of deploy/redis/users.acl, on a real server: what each may do, and nothing else."""

import asyncio
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.guide import example, run
from tests.support.processes import DEADLINE, ROOT, STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.app import create_app
from worker.broker.backlog import READY, read_backlog
from worker.broker.keys import (
    AGENTS,
    BATCHED,
    CANARIES,
    COUNTED,
    DEAD_LETTERS,
    EVIDENCE,
    FAILURES,
    FAULTS,
    NO_NAMESPACE,
    QUEUES,
    RELOAD,
    UNACKED,
    UNACKED_INDEX,
    Namespace,
    attempt,
    partial,
    queue_lists,
    reload_answers,
    result,
    suspects,
)
from worker.client import BACKFILL_QUEUE, LIVE_QUEUE, Client
from worker.client import asyncio as awaited
from worker.monitor.canary import Canary, Question
from worker.monitor.figures import CanaryOutcome
from worker.monitor.reading import Reader
from worker.process.reload_requests import Asked

USERS = "deploy/redis/users.acl"

STAGING = Namespace("staging")


@pytest.fixture(params=[NO_NAMESPACE, STAGING], ids=["", "namespace"])
def namespace(request: pytest.FixtureRequest) -> Namespace:
    chosen: Namespace = request.param
    return chosen


@pytest.fixture
def redis_url(tmp_path: Path, namespace: Namespace) -> Iterator[str]:
    """A server with these users, which knows nobody else."""
    socket, port = tmp_path / "admin.sock", embedded._free_port()
    users = tmp_path / "users.acl"
    users.write_bytes((ROOT / USERS).read_bytes())
    if namespace == STAGING:
        with_prefix = shlex.split(example("sh", USERS))
        subprocess.run([users if part == USERS else part for part in with_prefix], check=True)
    with users.open("a") as file:
        file.write("user admin on nopass ~* &* +@all\n")
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


def test_each_user_needs_no_more_than_the_file_gives(
    admin: redis.Redis, redis_url: str, namespace: Namespace, tmp_path: Path
) -> None:
    async def also_awaited() -> None:
        async with awaited.Client(url(redis_url, "agent"), namespace.name) as agent:
            await agent.result(await agent.submit(message()))

    as_worker, as_viewer = url(redis_url, "worker"), url(redis_url, "viewer")
    with (
        Worker.start(
            STUB, tmp_path, as_worker, namespace=namespace.name, celery_events="on"
        ) as worker,
        Client(url(redis_url, "agent"), namespace.name) as agent,
        redis.Redis.from_url(as_viewer) as viewer,
        create_app(as_worker, namespace) as app,
    ):
        worker.wait_until_ready()
        agent.result(agent.submit(message()))
        ids = agent.submit_many([message("fail"), message()], queue=BACKFILL_QUEUE)
        assert len(list(agent.results(ids))) == 2
        asyncio.run(also_awaited())
        look_around(viewer, namespace)
        monitor(url(redis_url, "monitor"), namespace)
        if namespace == NO_NAMESPACE:
            code = example("python", "import Celery")
            assert run(code, redis_url=as_worker)["verdict"]["solved"]
        name = f"{socket.gethostname()}:{worker.process.pid}"
        asked = app.control.inspect(destination=[name], timeout=30)
        assert asked.ping() == {name: {"ok": "pong"}}
        with redis.Redis.from_url(as_worker) as operator:
            (answer,) = Asked(operator, namespace, None).answers(DEADLINE)
        assert (answer.worker, answer.result) == (name, "already_serving")
        # Nothing was refused. Without the channels, for example, a client would only be slower.
        assert admin.acl_log() == []


def look_around(viewer: Any, namespace: Namespace) -> None:  # noqa: ANN401 - as redis-py replies
    """Read everything that a dashboard or an operator needs."""
    failures = namespace.key(FAILURES)
    ((entry, _),) = viewer.xrange(failures)
    assert viewer.xrevrange(failures, count=1)[0][0] == entry
    assert viewer.xread({failures: "0"})[0][1][0][0] == entry
    assert viewer.xlen(failures) == viewer.xinfo_stream(failures)["length"] == 1
    assert viewer.xlen(namespace.key(DEAD_LETTERS)) == 0
    assert viewer.memory_usage(failures)
    assert viewer.info("memory")["used_memory"]
    wait_for(lambda: viewer.zcard(namespace.key(UNACKED_INDEX)) == 0, "acknowledged")
    assert viewer.hlen(namespace.key(UNACKED)) == viewer.hlen(namespace.key(FAULTS)) == 0
    backlog = read_backlog(viewer, namespace)
    assert backlog is not None
    assert backlog[LIVE_QUEUE, READY] == 0


def monitor(as_monitor: str, namespace: Namespace) -> None:
    """Read everything that the monitor shows, and send a canary."""
    noted: list[CanaryOutcome] = []
    with (
        redis.Redis.from_url(as_monitor) as store,
        Client(as_monitor, namespace.name) as sender,
    ):
        reading = Reader(store, namespace)()
        assert reading is not None
        assert reading.streams["failures"].entries == 1
        assert reading.stream_bytes["failures"] > 1000
        assert sum(reading.agents.values()) == 2
        assert reading.ready[LIVE_QUEUE] == reading.oldest[LIVE_QUEUE] == 0
        assert reading.memory_used
        Canary(
            sender,
            store,
            namespace,
            [Question(message())],
            seconds=1,
            note=lambda outcome, _: noted.append(outcome),
        ).step()
    assert noted == [CanaryOutcome.SOLVED]


NAMES = {
    "queue": QUEUES,
    "agents": (AGENTS,),
    "evidence": (EVIDENCE,),
    "marks": (f"{EVIDENCE}:1", f"{FAILURES}:marks", f"{DEAD_LETTERS}:marks"),
    "batched": (BATCHED,),
    "canaries": (CANARIES,),
    "other list": (*queue_lists(LIVE_QUEUE)[1:], suspects(LIVE_QUEUE)),
    "result": (result("id"),),
    "stream": (FAILURES, DEAD_LETTERS),
    "unacked": (UNACKED,),
    "index": (UNACKED_INDEX,),
    "faults": (FAULTS,),
    "marker": (f"{COUNTED}:1:2", attempt("thread"), partial("id")),
    "reload": (RELOAD, reload_answers("id")),
    "other": ("other", "celery", "unacked", "sqehrm.evaluate"),
}
"""The names in Redis by kind."""

AFTER_A_WORD = {
    "XREAD": ("STREAMS", "{}", "0"),
    "XREADGROUP": ("GROUP", *"ab", "STREAMS", "{}", ">"),
}
"""The arguments of commands whose keys follow a word."""

ANYONE = {"AUTH", "HELLO", "QUIT", "RESET"}
"""Commands that Redis takes also from those who have not logged in."""


def all_commands(admin: redis.Redis) -> dict[str, tuple[str, ...]]:
    """Every command of the server with arguments that make it complete; {} stands for a name."""
    found = {}
    for name, about in admin.command().items():
        parts = [(entry[0].decode(), entry[1]) for entry in about["subcommands"]]
        for full, arity in parts or [(name, about["arity"])]:
            words = full.upper().split("|")
            line = [*words, *["{}"] * (abs(arity) - len(words))]
            for keys in about["key_specifications"]:
                if keys[b"find_keys"][b"type"] == b"keynum":
                    number = keys[b"begin_search"][b"spec"][b"index"]
                    line[number : number + 2] = ["1", "{}"]
            found["|".join(words)] = (words[0], *AFTER_A_WORD.get(words[0], line[1:]))
    assert len(found) > 350
    return found


def permitted(admin: redis.Redis, user: str, namespace: Namespace) -> dict[str, set[str]]:
    """The commands that `user` may run on every name of a kind, and without any ("")."""
    commands = all_commands(admin)
    names = {kind: namespace.all_keys(some) for kind, some in NAMES.items()}
    if namespace.name:
        names["other"] += NAMES["queue"] + NAMES["result"] + NAMES["stream"]
    runs = {
        (command, name): [part.format(name) for part in parts]
        for command, parts in commands.items()
        for name in (name for some in names.values() for name in some)
    }
    with admin.pipeline(transaction=False) as pipe:
        call: Any = pipe.execute_command
        for words in runs.values():
            call("ACL", "DRYRUN", user, *words)
        replies = pipe.execute()
    may = {run for run, reply in zip(runs, replies, strict=True) if reply in {b"OK", True}}
    everywhere = {
        command for command in commands if all((command, name) in may for name in names["other"])
    }
    on = {
        kind: {c for c in commands if any((c, name) in may for name in some)} - everywhere
        for kind, some in names.items()
    }
    for kind, some in names.items():
        # No rule that covers only some names of a kind.
        assert all((command, name) in may for command in on[kind] for name in some), kind
    return {"": everywhere, **on}


def test_an_agent_may_enqueue_and_read_outcomes_and_nothing_else(
    admin: redis.Redis, namespace: Namespace
) -> None:
    assert permitted(admin, "agent", namespace) == {
        "": ANYONE
        | {"PING", "SELECT", "MULTI", "EXEC", "DISCARD", "WAIT", "UNSUBSCRIBE", "CLIENT|SETINFO"},
        **{kind: set() for kind in NAMES},
        "queue": {"LPUSH"},
        "batched": {"HINCRBY"},
        "result": {"DEL", "GET", "MGET", "SUBSCRIBE"},
    }


def test_a_viewer_may_read_the_streams_and_count_what_waits_and_nothing_else(
    admin: redis.Redis, namespace: Namespace
) -> None:
    assert permitted(admin, "viewer", namespace) == {
        "": ANYONE | {"PING", "SELECT", "INFO", "TIME", "CLIENT|SETINFO"},
        **{kind: set() for kind in NAMES},
        "queue": {"LLEN", "MEMORY|USAGE"},
        "other list": {"LLEN", "MEMORY|USAGE"},
        "stream": {"XRANGE", "XREVRANGE", "XREAD", "XLEN", "XINFO|STREAM", "MEMORY|USAGE"},
        "index": {"ZCARD", "ZCOUNT", "ZRANGE", "MEMORY|USAGE"},
        "unacked": {"HLEN", "MEMORY|USAGE"},
        "faults": {"HLEN", "MEMORY|USAGE"},
        **{
            kind: {"MEMORY|USAGE"}
            for kind in ("marker", "agents", "batched", "canaries", "evidence", "marks", "reload")
        },
    }


def test_the_monitor_may_count_and_send_canaries_and_nothing_else(
    admin: redis.Redis, namespace: Namespace
) -> None:
    assert permitted(admin, "monitor", namespace) == {
        "": ANYONE
        | {"PING", "SELECT", "INFO", "TIME", "MULTI", "EXEC", "DISCARD", "WAIT", "UNSUBSCRIBE"}
        | {"CLIENT|SETINFO"},
        **{kind: set() for kind in NAMES},
        "queue": {"LPUSH", "LLEN", "LINDEX", "EVAL_RO"},
        "other list": {"LLEN", "LINDEX", "EVAL_RO"},
        "result": {"DEL", "GET", "MGET", "SUBSCRIBE"},
        "stream": {"XINFO|STREAM"},
        "index": {"ZRANGE"},
        "agents": {"HGETALL"},
        "batched": {"HGETALL"},
        "evidence": {"HGETALL"},
        "canaries": {"SADD", "SREM", "SMEMBERS"},
    }


def test_a_worker_may_neither_rule_the_server_nor_touch_or_list_the_keys_of_others(
    admin: redis.Redis, namespace: Namespace
) -> None:
    may = permitted(admin, "worker", namespace)
    ruling = {
        bytes(name).decode().upper()  # type: ignore[arg-type]
        for category in ("dangerous", "admin")
        for name in admin.command_list(category=category)
    }
    assert {"FLUSHALL", "CONFIG|SET", "KEYS", "ACL|LIST", "MONITOR", "SHUTDOWN"} < ruling
    assert set().union(*may.values()) & ruling == {"INFO"}
    assert {"GET", "LTRIM", "XADD", "HGETALL", "EVALSHA"} < may["queue"]
    without_keys = {name for name in may[""] if not name.startswith(("CLIENT|", "COMMAND|"))}
    assert without_keys == ANYONE | {
        *("ASKING", "ECHO", "INFO", "PING", "READONLY", "READWRITE", "SELECT", "TIME"),
        *("MULTI", "EXEC", "DISCARD", "UNWATCH", "WAIT", "WAITAOF", "SCRIPT|LOAD"),
        *("SCRIPT|EXISTS", "XGROUP|HELP"),
        *("XINFO|HELP", "PUBLISH", "SPUBLISH", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"),
        *("UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        *(name for name in may[""] if name.startswith("PUBSUB|")),
    }


def test_nobody_connects_without_a_name_and_a_password(redis_url: str) -> None:
    for wrong in (redis_url, redis_url.replace("//", "//agent:guess@")):
        with redis.Redis.from_url(wrong) as nobody, pytest.raises(redis.exceptions.RedisError):
            nobody.ping()
