"""An agent's installation: the distribution without extras, in an environment of its own.

The other tests run in the checkout, in an environment with every extra, where a file or a
requirement that the distribution lacks is available all the same.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.installs import INSTALL_SECONDS, Install, build_wheel, copy_sources, create
from tests.support.processes import DEADLINE, ROOT, STUB, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 2 * DEADLINE)

SHIPPED = ("sqe-demo", "sqe-demo-600", "sqe-demo-2")

CHECKPOINT = (
    "README.md",
    "accepted.pairs",
    "config.json",
    "figures.json",
    "measured.json",
    "model.safetensors",
    "precision.json",
    "training_pairs.json",
)
"""The files of a shipped checkpoint."""

SEND = """
import importlib.util
import json

import worker
from schemas import SQEMessage
from worker.client import result, submit

message = SQEMessage.create(agent_id="planner", prompt="solve", completion="done")
verdict = result(submit(message), timeout=30)
print(
    json.dumps(
        {
            "answered": verdict.message_id == message.message_id,
            "solved": verdict.solved,
            "code": worker.__file__,
            "torch": importlib.util.find_spec("torch") is not None,
        }
    )
)
"""
"""The README's agent, which also reports where its code comes from."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built beside checkpoints that are not shipped."""
    folder = tmp_path_factory.mktemp("project")
    copy_sources(folder / "sources")
    for trained in ("mine", "sqe-demo/step_1"):
        (folder / "sources" / "checkpoints" / trained).mkdir()
        (folder / "sources" / "checkpoints" / trained / "model.safetensors").write_text("")
    return build_wheel(folder)


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> "Iterator[Install]":
    """The distribution without extras, installed as the README says."""
    folder = tmp_path_factory.mktemp("install")
    yield create(folder, ["--constraint", str(ROOT / "constraints.txt"), str(wheel)])
    # Tens of megabytes; pytest would keep the last three.
    shutil.rmtree(folder)


def files_in(folder: str, *endings: str) -> set[str]:
    """Files of the checkout under the names they have in a wheel."""
    return {
        str(file.relative_to(ROOT))
        for file in (ROOT / folder).rglob("*")
        if file.name.endswith(endings) and "client_package" not in file.parts
    }


@pytest.fixture
def answering(tmp_path: Path, redis_url: str) -> "Iterator[str]":
    """The URL of a Redis with a worker."""
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        yield redis_url


def test_an_agent_sends_a_message_and_gets_its_verdict(install: Install, answering: str) -> None:
    report = json.loads(install.output("python", "-c", SEND, SQE_REDIS_URL=answering))
    assert Path(report["code"]).is_relative_to(install.environment)
    assert report["answered"]
    assert report["solved"]
    assert not report["torch"]


def test_an_agent_sends_a_file(install: Install, answering: str, tmp_path: Path) -> None:
    file, output = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text('{"prompt": "solve", "completion": "done"}\n' * 2)
    said = install.output(
        *("sqe-hrm", "submit", "--data-path", str(file), "--output", str(output)),
        SQE_REDIS_URL=answering,
    )
    assert said.startswith("2 sent, 2 verdicts, 2 solved, ")
    verdicts = [json.loads(line) for line in output.read_text().splitlines()]
    assert [verdict["solved"] for verdict in verdicts] == [True, True]


def test_the_wheel_has_the_shipped_checkpoints_and_no_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        found = {name for name in content.namelist() if ".dist-info/" not in name}
    shipped = {f"hrm/shipped/{name}/{file}" for name in SHIPPED for file in CHECKPOINT}
    shipped |= {f"hrm/shipped/{name}/messages.jsonl" for name in ("sqe-demo", "sqe-demo-2")}
    code = {
        *files_in("hrm", ".py", ".cpp", ".h", "py.typed"),
        *files_in("schemas", ".py", ".json", "py.typed"),
        *files_in("worker", ".py", "py.typed"),
    }
    assert found == shipped | code


def test_an_install_finds_the_shipped_checkpoint(install: Install) -> None:
    find = (
        "from pathlib import Path; from hrm.checkpoint.names import find_checkpoint; "
        "print(find_checkpoint('sqe-demo', Path('checkpoints')))"
    )
    found = Path(install.output("python", "-c", find).strip())
    assert found.is_relative_to(install.environment)
    assert (found / "model.safetensors").read_bytes() == (
        ROOT / "checkpoints" / "sqe-demo" / "model.safetensors"
    ).read_bytes()


def test_a_command_that_needs_an_extra_names_it(install: Install) -> None:
    done = install.run("sqe-hrm", "worker", "--metrics-port", "0")
    assert done.returncode == 1
    assert done.stderr == (
        "sqe-hrm: error: the module torch is missing: it comes with the extra 'worker' "
        "(in a checkout: pip install '.[worker]')\n"
    )
    assert not (install.folder / ".sqe").exists()


@pytest.mark.parametrize("command", ["analyze", "convert", "demo", "schema", "submit", "worker"])
def test_an_install_shows_the_help_of_a_command(install: Install, command: str) -> None:
    assert f"Usage: sqe-hrm {command} " in install.output("sqe-hrm", command, "--help")
