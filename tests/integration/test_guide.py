"""The examples of worker/README.md for agents, against a real Redis and a real worker."""

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import schemas
from schemas import RejectionReason, Verdict
from tests.support.processes import ROOT
from tests.support.stubs import message
from worker import client
from worker.broker.keys import LIVE_QUEUE, result
from worker.client import blocking

if TYPE_CHECKING:
    import redis

    from tests.conftest import Site

GUIDE = (ROOT / "worker" / "README.md").read_text()


def example(language: str, contains: str) -> str:
    """The one code block in this language with this text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    (found,) = [block for block in blocks if contains in block]
    return str(found)


def run(code: str, **names: object) -> dict[str, Any]:
    """Run an example; returns its names."""
    namespace: dict[str, Any] = dict(names)
    exec(compile(code, "worker/README.md", "exec"), namespace)  # noqa: S102
    return namespace


def fields(value: object) -> object:
    """The names of all fields of a JSON object, without their values."""
    if isinstance(value, dict):
        return {name: fields(each) for name, each in value.items()}
    return None


def test_the_agents_example_gets_its_verdict(site: "Site", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", site.redis_url)
    blocking._default.cache_clear()
    names = run(example("python", "worker.client import ResultTimeout"))
    assert names["verdict"].message_id == names["message_id"]
    assert client.poll([names["message_id"]]) == {names["message_id"]: names["verdict"]}
    blocking._default().close()
    blocking._default.cache_clear()


def test_an_error_is_imported_as_the_guide_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(schemas|worker\.client)` \|", GUIDE, re.MULTILINE)
    assert len(rows) == 6
    for name, module in rows:
        error = getattr({"schemas": schemas, "worker.client": client}[module], name)
        assert issubclass(error, schemas.SQEHRMError)


def test_a_celery_application_of_ones_own_gets_the_outcome(site: "Site") -> None:
    names = run(example("python", "import Celery"), redis_url=site.redis_url)
    outcome = Verdict.model_validate_json(json.dumps(names["outcome"]))
    assert outcome.message_id == names["message"].message_id
    again = names["app"].AsyncResult(names["task"].id)
    assert (again.get(timeout=30), again.state) == (names["outcome"], "SUCCESS")
    names["app"].close()


def test_the_task_as_json_gets_the_outcome_as_json(site: "Site") -> None:
    site.store.lpush(LIVE_QUEUE, example("json", '"body":'))
    verdict = site.client.result("run-42")
    assert verdict.timings.queue is None, "the example's time is too old"
    stored = json.loads(site.store.get(result("run-42")) or "")
    shown = json.loads(example("json", '"date_done":'))
    assert fields(stored) == fields(shown)
    assert Verdict.model_validate_json(json.dumps(shown["result"])).message_id == "run-42"


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
