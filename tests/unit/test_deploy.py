"""`deploy/` refers only to settings, metrics, queues and files that exist, and is consistent.

`test_alerts.py` has the alerts. The syntax of the systemd unit needs systemd-analyze, which
`.ci/run` calls.
"""

import configparser
import importlib.resources
import itertools
import json
import re
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from schemas import Category, RejectionReason
from tests.support.stubs import StubEvaluator
from worker.broker.backlog import READY
from worker.broker.keys import LIVE_QUEUE
from worker.cli.main import COMMANDS
from worker.delivery.hand import Hand
from worker.fleet.members import Member
from worker.fleet.merge import merged
from worker.fleet.supervisor import END_SECONDS, State
from worker.monitor.figures import Figures
from worker.monitor.reading import Reading, Stream
from worker.process.notify import BEAT_SECONDS
from worker.settings import PREFIX, Settings
from worker.telemetry.health import Readiness
from worker.telemetry.labels import ErrorKind, Lane
from worker.telemetry.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
PORT = Settings().metrics_port

JOB = "sqe-hrm-worker"

ADDED = {"instance", "job", "le", "device", "process"}
"""Labels that Prometheus, and the process above several workers, add to a worker's metrics."""


def _yaml(name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    return yaml.safe_load((DEPLOY / name).read_text())


COMPOSE = _yaml("compose.yaml")
PROMETHEUS = _yaml("prometheus/prometheus.yml")
RULES = [
    rule for group in _yaml("prometheus/rules/sqe_hrm.yml")["groups"] for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def _queries() -> list[str]:
    """Every PromQL expression in the rules."""
    return [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of every sample that a worker or the monitor exposes, by sample name."""
    metrics = Metrics()
    metrics.watch_engine(
        StubEvaluator(),
        memory=lambda: {"allocated": 1},
        stalled_seconds=lambda: 0.0,
        cached=True,
    )
    metrics.watch_readiness(Readiness())
    metrics.watch_hand(Hand(4).flows)
    metrics.rejected(RejectionReason.NOT_JSON)
    metrics.duplicate()
    metrics.error(ErrorKind.REDIS)
    metrics.self_tested(8, 8, passed=True)
    metrics.serves(StubEvaluator())
    samples: dict[str, set[str]] = {}
    state = State(Member("cpu", 0), None, None, 0)
    monitor = Figures(lambda: READING)
    for family in (
        *metrics.registry.collect(),
        *merged(lambda: [state]).collect(),
        *monitor.registry.collect(),
    ):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


READING = Reading(
    ready={LIVE_QUEUE: 1},
    oldest={LIVE_QUEUE: 1.0},
    stalest={LIVE_QUEUE: 1.0},
    streams={"failures": Stream()},
    memory_used=1,
    memory_max=1,
    agents={("planner", Category.OTHER, "true", "solved"): 1},
    stream_bytes={"failures": 1},
    left_out=1,
)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_published_schema(name: str) -> None:
    package = importlib.resources.files("check_jsonschema")
    schema = json.loads(
        (package / "builtin_schemas" / "vendor" / "compose-spec.json").read_text(encoding="utf-8")
    )
    jsonschema.validate(_yaml(name), schema)


def test_the_gpu_file_only_adds_to_services_that_exist() -> None:
    overlay = _yaml("compose.gpu.yaml")["services"]
    assert overlay.keys() <= COMPOSE["services"].keys()
    assert overlay["monitor"]["image"] == overlay["worker"]["image"]
    (device,) = overlay["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_image_is_pinned_to_a_minor_version_at_least() -> None:
    services = COMPOSE["services"].values()
    built = {service["image"] for service in services if "build" in service}
    pulled = {service["image"] for service in services} - built
    assert len(pulled) == 4
    for image in pulled:
        assert re.search(r":v?\d+\.\d+", image), image


def test_redis_is_reachable_only_inside_and_the_rest_only_from_this_machine() -> None:
    assert "ports" not in COMPOSE["services"]["redis"]
    assert "ports" not in COMPOSE["services"]["worker"]
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_redis_refuses_messages_before_the_machines_memory_is_full() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    options = dict(itertools.pairwise(command))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == "${REDIS_MAXMEMORY:-4gb}"
    assert "| `REDIS_MAXMEMORY` | " in (DEPLOY / "README.md").read_text()


def test_every_service_has_a_health_check() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["healthcheck"]["test"], name


def test_every_mounted_file_exists_and_every_volume_is_declared() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_workers_are_given_only_settings_that_exist() -> None:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        for service in ("worker", "monitor"):
            for variable in _yaml(name)["services"].get(service, {}).get("environment", ()):
                assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, variable


def test_the_monitor_is_given_the_same_deployment_as_the_workers() -> None:
    worker, monitor = (COMPOSE["services"][name] for name in ("worker", "monitor"))
    assert monitor["image"] == worker["image"]
    own = {variable for variable in monitor["environment"] if variable == "SQE_CANARY_SECONDS"}
    for variable in monitor["environment"].keys() - own:
        assert monitor["environment"][variable] == worker["environment"][variable], variable


FIXED = {
    "redis_url",
    "checkpoint_dir",
    "device",
    "metrics_host",
    "metrics_port",
    "monitor_port",
} | {
    "shutdown_grace_seconds"  # goes with stop_grace_period
}
"""Settings of the surroundings of a worker, which the Compose file is."""


def test_operators_can_give_every_other_setting() -> None:
    services = COMPOSE["services"]
    environment = {**services["monitor"]["environment"], **services["worker"]["environment"]}
    for name in Settings.model_fields.keys() - FIXED:
        variable = PREFIX + name.upper()
        assert environment[variable].startswith(f"${{{variable}:-"), variable


def test_a_worker_has_time_to_finish_before_it_is_killed() -> None:
    grace = COMPOSE["services"]["worker"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > Settings().shutdown_grace_seconds


UNIT = configparser.ConfigParser(interpolation=None)
# Names of systemd's settings tell upper case from lower case.
UNIT.optionxform = str  # type: ignore[assignment, method-assign]
UNIT.read(DEPLOY / "systemd" / "sqe-hrm-worker.service")
SERVICE = UNIT["Service"]


def test_the_unit_starts_reloads_and_stops_workers_as_they_expect() -> None:
    assert SERVICE["Type"] == "notify"
    program, command = SERVICE["ExecStart"].split()
    assert program.endswith("/bin/sqe-hrm")
    assert command in COMMANDS
    assert SERVICE["ExecReload"].endswith(" -HUP $MAINPID")
    assert SERVICE["KillMode"] == "mixed", "the supervisor tells its workers itself"
    needed = Settings().shutdown_grace_seconds + END_SECONDS
    assert needed < float(SERVICE["TimeoutStopSec"]) == 45
    assert float(SERVICE["WatchdogSec"]) >= 10 * BEAT_SECONDS
    assert SERVICE["RestartPreventExitStatus"] == str(click.UsageError.exit_code)


def test_the_guide_names_the_units_files() -> None:
    guide = (DEPLOY / "README.md").read_text()
    for file in (SERVICE["EnvironmentFile"], "systemd/sqe-hrm-worker.service"):
        assert file in guide
    assert f"{Path(SERVICE['ExecStart'].split()[0]).parents[1]}/bin/pip" in guide


def test_all_files_agree_on_the_metrics_port() -> None:
    (worker,) = (job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == JOB)
    (discovery,) = worker["dns_sd_configs"]
    assert discovery == {"names": ["worker"], "type": "A", "port": PORT, "refresh_interval": "15s"}
    assert f"127.0.0.1:{PORT}/readyz" in COMPOSE["services"]["worker"]["healthcheck"]["test"][-1]
    assert f"EXPOSE {PORT}\n" in (DEPLOY / "Dockerfile").read_text()
    (monitor,) = (job for job in PROMETHEUS["scrape_configs"] if "monitor" in job["job_name"])
    port = Settings().monitor_port
    assert monitor["static_configs"] == [{"targets": [f"monitor:{port}"]}]
    assert f"127.0.0.1:{port}/readyz" in COMPOSE["services"]["monitor"]["healthcheck"]["test"][-1]


def test_prometheus_sends_its_alerts_to_the_alertmanager_of_the_compose_file() -> None:
    (alertmanager,) = PROMETHEUS["alerting"]["alertmanagers"]
    assert alertmanager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    service = COMPOSE["services"]["alertmanager"]
    assert service["ports"] == ["127.0.0.1:9093:9093"]
    (config,) = (each for each in service["command"] if each.startswith("--config.file="))
    file = config.removeprefix("--config.file=")
    assert f"./alertmanager/alertmanager.yml:{file}:ro" in service["volumes"]


def test_prometheus_reaches_workers_which_listen_on_loopback_by_default() -> None:
    assert Settings().metrics_host == "127.0.0.1"
    assert COMPOSE["services"]["worker"]["environment"]["SQE_METRICS_HOST"] == "0.0.0.0"  # noqa: S104
    assert "ENV SQE_METRICS_HOST=0.0.0.0\n" in (DEPLOY / "Dockerfile").read_text()


def test_rules_use_metrics_and_labels_that_a_worker_exposes(
    exposed: dict[str, set[str]],
) -> None:
    checked = 0
    for query in _queries():
        for name, selector in re.findall(r"([\w:]*sqe_hrm_[\w:]+)(?:\{([^}]*)\})?", query):
            checked += 1
            if ":" in name:
                assert name in RECORDED, query
                labels = set(re.split(r"[:_]", name.split(":")[0]))
            else:
                assert name in exposed, query
                labels = exposed[name]
            used = set(re.findall(r"(\w+)=", selector))
            assert used <= labels | ADDED, query
    assert checked > 30


def test_queries_group_by_labels_that_exist(exposed: dict[str, set[str]]) -> None:
    known = set().union(*exposed.values(), ADDED)
    for query in _queries():
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", labels)) <= known, query


def test_queries_select_label_values_that_exist() -> None:
    text = "\n".join(_queries())
    assert not re.search(r"\bjob\W*=", text), "scrape jobs may have any name"
    assert set(re.findall(r'queue="([^"]*)"', text)) == {LIVE_QUEUE}
    assert set(re.findall(r'\bstate="([^"]*)"', text)) == {READY}
    lanes = set(re.findall(r'lane!?="([^"]*)"', text))
    assert lanes <= set(Lane)
    assert Lane.LIVE in lanes
    assert set(re.findall(r'kind="([^"]*)"', text)) == {ErrorKind.REDIS}


def test_grafana_finds_the_dashboards_where_compose_mounts_them() -> None:
    (provider,) = _yaml("grafana/provisioning/dashboards/sqe-hrm.yml")["providers"]
    folder = provider["options"]["path"]
    grafana = COMPOSE["services"]["grafana"]
    assert f"./grafana/dashboards:{folder}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(folder)
    assert (DEPLOY / "grafana/dashboards" / home.name).exists()
