"""The distribution `sqe-hrm-client` in an agent's repository, beside the agent's own modules.

Such a repository may have its own `worker.py` and `schemas.py`, and any version of Celery.
"""

import ast
import json
import shutil
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.installs import INSTALL_SECONDS, Install, build_wheel, create
from tests.support.processes import DEADLINE, ROOT, STUB, Worker
from tests.support.servers import server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 2 * DEADLINE)

AGENTS = {
    "alone": ["pytest"],
    # With the kombu of its time: a newer one imports packaging, which Celery 5.4 does not require.
    # With the oldest redis that the client accepts.
    "celery 5.4": ["celery[redis]==5.4.*", "kombu==5.4.*", "redis==5.0.1"],
    "celery 5.6": ["celery[redis]==5.6.*"],
}
"""Packages that each agent has beside the client."""

FOREIGN = "raise ImportError('the client has to leave the modules of its user alone')\n"

AGENT = """
import asyncio
import importlib.util
import json
import sys

from sqe_hrm_client import BACKFILL_QUEUE, SQEMessage, poll, result, results, submit, submit_many
from sqe_hrm_client import asyncio as awaited


def message():
    return SQEMessage.create(agent_id="planner", prompt="solve", completion="done")


verdicts = [result(submit(message()), timeout=30)]
ids = submit_many([message(), message()], queue=BACKFILL_QUEUE)
verdicts += results(ids, timeout=30)
assert set(poll(ids)) == set(ids)


async def main():
    async with awaited.Client() as client:
        verdicts.append(await client.result(await client.submit(message()), timeout=30))
    ids = await awaited.submit_many([message(), message()])
    verdicts.extend([each async for each in awaited.results(ids, timeout=30)])


asyncio.run(main())
assert not {"worker", "schemas", "celery", "kombu", "torch"} & set(sys.modules)
print(json.dumps([each.solved for each in verdicts]))
"""

CELERY_AGENT = """
import json
import os
import sys

import celery
from sqe_hrm_client import MessageRejected, RejectionReason, SQEMessage, result, submit

app = celery.Celery(broker=os.environ["SQE_REDIS_URL"], backend=os.environ["SQE_REDIS_URL"])
message = SQEMessage.create(agent_id="planner", prompt="solve", completion="done")
task = app.send_task("sqe.evaluate", args=[message.model_dump_json()], queue="sqe.evaluate")
outcome = task.get(timeout=30)
assert outcome["message_id"] == message.message_id
assert result(submit(message), timeout=30).message_id == message.message_id
try:
    app.send_task("sqe.evaluate", args=["no json"], queue="sqe.evaluate").get(timeout=30)
    raise AssertionError("not refused")
except MessageRejected as rejected:
    assert rejected.reason is RejectionReason.NOT_JSON
assert not {"worker", "schemas"} & set(sys.modules)
print(json.dumps({"solved": outcome["solved"], "celery": celery.__version__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("client"), "worker/client_package")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> "Iterator[dict[str, Install]]":
    folders = {name: tmp_path_factory.mktemp("agent") for name in AGENTS}
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda name: create(folders[name], [str(wheel), *AGENTS[name]]), AGENTS)
        yield dict(zip(AGENTS, made, strict=True))
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[str]":
    """The URL of a Redis with a worker."""
    folder = tmp_path_factory.mktemp("answering")
    with (
        server(folder) as running,
        Worker.start(STUB, folder, running.url) as worker,
    ):
        worker.wait_until_ready()
        yield running.url


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An agent's repository whose modules are called as this project's are."""
    for name in ("worker", "schemas", "hrm"):
        (tmp_path / f"{name}.py").write_text(FOREIGN)
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "celery_agent.py").write_text(CELERY_AGENT)
    return tmp_path


@pytest.mark.parametrize("name", AGENTS)
def test_a_repository_with_modules_of_the_same_names_sends_and_receives(
    name: str, agents: dict[str, Install], answering: str, repository: Path
) -> None:
    agent = agents[name].within(repository)
    said = agent.output("python", "-X", "dev", "-W", "error", "agent.py", SQE_REDIS_URL=answering)
    assert json.loads(said) == [True] * 6


@pytest.mark.parametrize("version", ["5.4", "5.6"])
def test_a_celery_application_of_the_agents_version_sends_and_receives(
    version: str, agents: dict[str, Install], answering: str, repository: Path
) -> None:
    agent = agents[f"celery {version}"].within(repository)
    said = json.loads(agent.output("python", "celery_agent.py", SQE_REDIS_URL=answering))
    assert said["solved"]
    assert said["celery"].startswith(f"{version}.")


def test_plain_pytest_imports_the_repositorys_own_modules(
    agents: dict[str, Install], tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "conftest.py").touch()
    (tmp_path / "pytest.ini").touch()  # or it looks for one in the folders above
    for name in ("worker", "schemas"):
        (tmp_path / f"{name}.py").write_text("OWN = True\n")
    (tmp_path / "tests" / "test_agent.py").write_text(
        "import schemas\nimport worker\nfrom sqe_hrm_client import SQEMessage\n\n"
        "def test_own():\n    assert worker.OWN\n    assert schemas.OWN\n    assert SQEMessage\n"
    )
    assert "1 passed" in agents["alone"].within(tmp_path).output("pytest", "-q")


def test_without_a_url_the_client_says_what_to_set(
    agents: dict[str, Install], tmp_path: Path
) -> None:
    done = (
        agents["alone"]
        .within(tmp_path)
        .run("python", "-c", "import sqe_hrm_client as c; c.Client()")
    )
    assert done.stderr.endswith(
        "RedisURLError: SQE_REDIS_URL is not set: give one such as redis://localhost:6379/0\n"
    )


def test_the_wheel_has_one_import_name_and_needs_redis_and_pydantic_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        files = {name: content.read(name) for name in content.namelist()}
    (about,) = [message_from_bytes(files[name]) for name in files if name.endswith("/METADATA")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["Version"] == project["version"]
    requirements = about.get_all("Requires-Dist", [])
    assert {each.partition("<")[0].partition(">")[0] for each in requirements} == {
        "pydantic",
        "redis",
    }
    code = {name: text for name, text in files.items() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in code} == {"sqe_hrm_client"}
    assert "sqe_hrm_client/py.typed" in code
    own = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in code}
    for name, text in code.items():
        for module in imported(text):
            root = module.partition(".")[0]
            assert root in {"pydantic", "pydantic_core", "redis"} | sys.stdlib_module_names or (
                root == "sqe_hrm_client" and module in own
            ), f"{name} imports {module}"


def imported(code: bytes) -> "Iterator[str]":
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
