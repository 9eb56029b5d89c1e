"""Options, states and errors of tasks, as the user of a plain Celery application finds them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, chord, group

from tests.support.celery_results import refusal
from tests.support.processes import DEADLINE, ROOT, STUB, Worker, wait_for
from tests.support.servers import sentinel, server
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.app import create_app
from worker.broker.keys import BACKFILL_QUEUE, DEAD_LETTERS, LIVE_QUEUE, Namespace
from worker.client import Client, MessageRejected, Rejection

if TYPE_CHECKING:
    import redis

    from tests.conftest import Site

APPLICATION = """
import json
import sys

from celery import Celery

url, text = sys.argv[1:]
app = Celery(broker=url, backend=url)
app.conf.task_routes = {"sqe.evaluate*": {"queue": "sqe.evaluate"}}
task = app.send_task("sqe.evaluate", args=[text])
try:
    task.get(timeout=30)
except Exception as error:
    kind = type(error)
    shown = {"class": f"{kind.__module__}.{kind.__name__}", "args": error.args}
shown |= {"state": task.state, "traceback": task.traceback, "failed": task.failed()}
assert not {"sqe_hrm_client", "schemas", "worker"} & set(sys.modules)
print(json.dumps(shown))
"""
"""An application that has nothing of this project."""


@pytest.fixture
def app(site: "Site") -> Iterator[Celery]:
    app = Celery(broker=site.redis_url, backend=site.redis_url, set_as_current=False)
    app.conf.task_routes = {"sqe.evaluate*": {"queue": LIVE_QUEUE}}
    yield app
    app.close()


def evaluate(app: Celery, **options: Any) -> Any:  # noqa: ANN401
    """A signature of the task, for canvas."""
    return app.signature(
        "sqe.evaluate", args=[message().model_dump_json()], immutable=True, **options
    )


def test_a_rejection_fails_the_task_of_an_application_without_this_project(
    site: "Site", tmp_path: Path
) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    done = subprocess.run(
        [sys.executable, "application.py", site.redis_url, "no json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    reason, detail = shown.pop("args")
    assert reason == "not_json"
    assert detail.startswith("Invalid JSON: ")
    assert shown == {
        "class": "celery.exceptions.MessageRejected",
        "state": "FAILURE",
        "traceback": None,
        "failed": True,
    }


def test_the_client_reads_the_rejection_of_a_celery_task(site: "Site", app: Celery) -> None:
    sent = message(message_id=str(uuid.uuid4()), puzzle_id=10**6)
    task = app.send_task("sqe.evaluate", args=[sent.model_dump_json()])
    with pytest.raises(MessageRejected) as caught:
        site.client.result(sent.message_id)
    (outcome,) = site.client.results([task.id])
    assert isinstance(outcome, Rejection)
    assert (outcome.message_id, outcome.reason) == (sent.message_id, caught.value.reason)
    assert refusal(task) == (outcome.reason, outcome.detail)


def test_a_batch_with_a_rejection_succeeds(app: Celery) -> None:
    task = app.send_task("sqe.evaluate_batch", args=[[message().model_dump_json(), "no json"]])
    verdict, rejection = task.get(timeout=30)
    assert task.state == "SUCCESS"
    assert "reason" not in verdict
    assert rejection.keys() == {"message_id", "reason", "detail"}


def test_a_group_is_its_tasks(app: Celery) -> None:
    outcomes = group(evaluate(app) for _ in range(3)).apply_async().get(timeout=30)
    assert len({outcome["message_id"] for outcome in outcomes}) == 3


def test_a_chord_a_chain_and_callbacks_are_refused_by_name(site: "Site", app: Celery) -> None:
    letters = site.store.xlen(DEAD_LETTERS)
    other = app.signature("team.report", immutable=True)
    header = [evaluate(app), evaluate(app)]
    body = chord(header, other).apply_async()
    assert body.parent is not None
    first = chain(evaluate(app), other).apply_async().parent
    linked = evaluate(app).apply_async(link=other)
    with_errback = evaluate(app).apply_async(link_error=other)
    late = evaluate(app).apply_async(countdown=60)
    for named, tasks in (
        ("'chord'", body.parent.results),
        ("'chain'", [first]),
        ("'link'", [linked]),
        ("'link_error'", [with_errback]),
        ("'eta' or 'countdown'", [late]),
    ):
        for task in tasks:
            reason, detail = refusal(task)
            assert reason == "unsupported_option"
            assert f"do not support the option {named}: " in detail
    assert site.store.xlen(DEAD_LETTERS) == letters + 6


def test_what_expires_while_it_waits_is_not_evaluated(
    tmp_path: Path, redis_url: str, store: "redis.Redis", client: Client
) -> None:
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    batch = [message(message_id="b1").model_dump_json(), message(message_id="b2").model_dump_json()]
    late = app.send_task(
        "sqe.evaluate", args=[message().model_dump_json()], queue=LIVE_QUEUE, expires=0.2
    )
    late_batch = app.send_task(
        "sqe.evaluate_batch", args=[batch], queue=BACKFILL_QUEUE, expires=0.2
    )
    in_time = app.send_task(
        "sqe.evaluate", args=[message().model_dump_json()], queue=LIVE_QUEUE, expires=600
    )
    expired = time.time() + 0.2
    wait_for(lambda: time.time() > expired, "their time passes")
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        assert in_time.get(timeout=30)["solved"]
        assert refusal(late)[0] == "expired"
        assert [each["reason"] for each in late_batch.get(timeout=30)] == ["expired"] * 2
        for message_id in ("b1", "b2"):
            with pytest.raises(MessageRejected, match="expired"):
                client.result(message_id)
        assert worker.metrics()["rejected_total{reason=expired}"] == 3
        assert worker.total("evaluations_total") == 1
    assert store.xlen(DEAD_LETTERS) == 3
    app.close()


PRODUCER = """
from tests.support.servers import sentinel, server
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.app import create_app
from worker.broker.app import EVALUATE
from worker.broker.producer import app

task = app.send_task(EVALUATE, [message(message_id="m1").model_dump_json()])
print(app.AsyncResult(task.id).get(timeout=30)["message_id"])
"""


def test_the_applications_of_producers_and_workers_meet_in_a_namespace(
    tmp_path: Path, redis_url: str, store: "redis.Redis"
) -> None:
    with Worker.start(STUB, tmp_path, redis_url, namespace="staging") as worker:
        worker.wait_until_ready()
        environ = {**os.environ, "SQE_REDIS_URL": redis_url, "SQE_NAMESPACE": "staging"}
        command = [sys.executable, "-c", PRODUCER]
        done = subprocess.run(command, env=environ, capture_output=True, check=False, cwd=ROOT)
        assert done.stdout == b"m1\n", done.stderr
    assert [key for key in store.scan_iter() if not key.startswith(b"{staging}:")] == []


def test_the_application_finds_the_primary_of_sentinels(tmp_path: Path) -> None:
    with server(tmp_path) as primary, sentinel(tmp_path, "primary", primary) as watching:
        url = f"sentinel://127.0.0.1:{watching.port}/0?master_name=primary"
        with Worker.start(STUB, tmp_path, url) as worker, create_app(url) as app:
            worker.wait_until_ready()
            task = app.send_task("sqe.evaluate", [message().model_dump_json()])
            assert task.get(timeout=30)["solved"]


def celery(site_url: str, *arguments: str, namespace: str = "") -> dict[str, Any]:
    """The command's answer, as JSON, by worker."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.broker.producer", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "SQE_REDIS_URL": site_url, "SQE_NAMESPACE": namespace},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    found = json.loads(done.stdout) if done.stdout else {}
    # `inspect` prints one object, `control` a list of them.
    answered: dict[str, Any] = found if isinstance(found, dict) else dict(ChainMap(*found))
    return answered


def test_a_worker_answers_celerys_questions_and_takes_no_commands(
    tmp_path: Path, redis_url: str, store: "redis.Redis"
) -> None:
    settings = {"celery_events": "on", "namespace": "staging"}
    gate = tmp_path / "gate"
    with (
        Worker.start(STUB, tmp_path, redis_url, **settings) as worker,
        Client(redis_url, namespace="staging") as client,
        create_app(redis_url, Namespace("staging")) as app,
    ):
        worker.wait_until_ready()
        held = client.submit(message(f"hold {gate}"))
        wait_for(lambda: store.hlen("{staging}:sqe:unacked") == 1, "taken")

        name = f"{socket.gethostname()}:{worker.process.pid}"
        # The reply of the one destination ends the time.
        to = (f"--destination={name}", f"--timeout={DEADLINE}")
        ping = celery(redis_url, "inspect", *to, "ping", namespace="staging")
        assert ping == {name: {"ok": "pong"}}
        shut = celery(redis_url, "control", *to, "shutdown", namespace="staging")
        refused = "not a question that workers answer"
        assert refused in shut[name]["error"]
        # The command asks by the same means.
        control = app.control
        asked = control.inspect([name], timeout=DEADLINE)
        (active,) = asked.active()[name]
        assert (active["id"], active["name"], active["args"]) == (held, "sqe.evaluate", "(...)")
        assert [each["name"] for each in asked.active_queues()[name]] == [
            LIVE_QUEUE,
            BACKFILL_QUEUE,
        ]
        assert asked.registered()[name] == ["sqe.evaluate", "sqe.evaluate_batch"]
        assert asked.stats()[name]["pool"]["max-concurrency"] == 4
        assert "redis_url" not in asked.conf()[name]
        options = {"destination": [name], "reply": True, "timeout": DEADLINE}
        for (reply,) in (
            control.pool_shrink(3, **options),
            control.cancel_consumer(LIVE_QUEUE, **options),
        ):
            assert refused in reply[name]["error"]
        gate.touch()
        assert client.result(held).solved
        assert asked.stats()[name]["total"] == {"sqe.evaluate": 1}
    assert [key for key in store.scan_iter() if not key.startswith(b"{staging}:")] == []


def test_a_worker_answers_no_questions_by_default(site: "Site") -> None:
    assert celery(site.redis_url, "inspect", "ping") == {}
    assert not site.store.keys("_kombu.binding.celery*")


def test_flower_shows_workers_and_tasks(tmp_path: Path, redis_url: str, client: Client) -> None:
    port = embedded._free_port()
    command = [sys.executable, "-m", "celery", "-A", "worker.broker.producer", "flower"]
    environ = {
        **os.environ,
        "SQE_REDIS_URL": redis_url,
        "FLOWER_UNAUTHENTICATED_API": "true",
        "PYTHONPATH": str(ROOT),
    }
    with (
        (tmp_path / "flower.log").open("wb") as log,
        subprocess.Popen(
            [*command, f"--port={port}", "--address=127.0.0.1"],
            env=environ,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        ) as flower,
    ):
        url = f"http://127.0.0.1:{port}/api"
        try:
            wait_for(lambda: answers(f"{url}/workers"), "Flower answers")
            with Worker.start(STUB, tmp_path, redis_url, celery_events="on") as worker:
                name = f"{socket.gethostname()}:{worker.process.pid}"
                wait_for(lambda: name in fetch(f"{url}/workers?refresh=1"), "Flower sees it")
                shown = fetch(f"{url}/workers?refresh=1&workername={name}")[name]
                assert shown["registered"] == ["sqe.evaluate", "sqe.evaluate_batch"]
                assert shown["stats"]["pool"]["max-concurrency"] == 4
                solved = client.submit(message("solve hush-hush"))
                refused = client.submit(message("nan hush-hush"))
                wait_for(
                    lambda: states(f"{url}/tasks") == {solved: "SUCCESS", refused: "FAILURE"},
                    "Flower sees how they ended",
                )
                task = fetch(f"{url}/tasks")[solved]
                assert (task["name"], task["worker"]) == ("sqe.evaluate", name)
                assert task["received"] <= task["started"] <= task["succeeded"]
                assert "hush-hush" not in str(fetch(f"{url}/tasks"))
                worker.signal(signal.SIGTERM)
                assert worker.wait() == 0
            wait_for(lambda: fetch(f"{url}/workers?status=1") == {name: False}, "it is offline")
        finally:
            flower.terminate()


def fetch(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as reply:  # noqa: S310 - made here
        found: dict[str, Any] = json.load(reply)
    return found


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        fetch(url)
        return True
    return False


def states(url: str) -> dict[str, str]:
    return {task_id: task["state"] for task_id, task in fetch(url).items()}
