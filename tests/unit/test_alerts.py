"""The alerts: rules, cases, runbook and guide agree, and who is told of them.

Prometheus' own `promtool` and Alertmanager's `amtool` read the files. Debian 12 has Prometheus
2.42, Compose runs 3, so the rules keep to what both have; what 2.42 does not know fails here.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.debian import program
from worker.cli.main import COMMANDS
from worker.telemetry.families import LONG_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "sqe_hrm.yml"
CASES = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
ALERTMANAGER = DEPLOY / "alertmanager" / "alertmanager.yml"


def _yaml(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    return yaml.safe_load(file.read_text())


GROUPS = _yaml(RULES)["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}

ENTRIES = dict(
    section.split("\n", maxsplit=1)
    for section in (DEPLOY / "RUNBOOK.md").read_text().split("\n## ")[1:]
)
"""The runbook's entries by heading."""

SEVERITIES = {"critical": "page", "warning": "ticket", "info": "notes"}
"""The receiver of each severity."""


def run(*command: str) -> str:
    """Run a program, and return what it printed; fails with that if it ends with an error."""
    done = subprocess.run(
        [program(command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    run("promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


@pytest.mark.parametrize("cases", CASES, ids=lambda file: file.stem)
def test_alerts_fire_and_stay_silent_as_their_cases_say(cases: Path) -> None:
    run("promtool", "test", "rules", str(cases))


def test_every_alert_has_a_case_that_fires_and_one_that_stays_silent() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for file in CASES:
        for test in _yaml(file)["tests"]:
            for case in test.get("alert_rule_test", ()):
                (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == ALERTS.keys()
    assert silent == ALERTS.keys()


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_cases_evaluate_the_groups_in_the_order_of_the_rules(file: Path) -> None:
    assert _yaml(file)["group_eval_order"] == [group["name"] for group in GROUPS]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_severity_a_summary_a_runbook_entry_and_a_row_in_the_guide(
    alert: str,
) -> None:
    rule = ALERTS[alert]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{alert.lower()}"
    parts = re.findall(r"^\*\*(\w+)(?:\.\*\*|\*\* )", ENTRIES[alert], re.MULTILINE)
    assert parts == ["Means", "Look", "Do", "Ends"]
    rows = re.findall(r"^\| (`SQEHRM.*?`) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert f"`{alert}`" in ", ".join(rows).split(", ")


def test_alerts_of_agents_and_categories_lead_to_their_failures() -> None:
    dashboard = json.loads((DASHBOARDS / "sqe-hrm-failures.json").read_text())
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    links = [
        rule["annotations"]["dashboard"]
        for rule in ALERTS.values()
        if "dashboard" in rule["annotations"]
    ]
    assert links
    for link in links:
        assert link.startswith(f"/d/{dashboard['uid']}?")
        assert set(re.findall(r"var-(\w+)=", link)) <= variables


def test_the_runbook_and_the_guide_have_no_other_alerts() -> None:
    assert ENTRIES.keys() == ALERTS.keys()
    for page in ("RUNBOOK.md", "README.md", "alertmanager/alertmanager.yml"):
        assert set(re.findall(r"SQEHRM\w+", (DEPLOY / page).read_text())) <= ALERTS.keys(), page


def test_the_rules_name_no_scrape_job_or_instance() -> None:
    assert not re.search(r"\b(job|instance)\s*[=!]", RULES.read_text())


def test_the_objective_of_latency_is_the_bound_of_a_bucket() -> None:
    bounds = set(re.findall(r'le="([^"]*)"', RULES.read_text()))
    assert len(bounds) == 1
    assert bounds <= {str(float(bound)) for bound in LONG_SECONDS}


def _blocks(language: str) -> list[str]:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_prometheus_takes_every_query_of_the_runbook(tmp_path: Path) -> None:
    rules = [
        {"record": f"look:{place}", "expr": query} for place, query in enumerate(_blocks("promql"))
    ]
    assert len(rules) >= 15
    exposed = set(re.findall(r"^\| `(\w+)` \|", (DEPLOY / "METRICS.md").read_text(), re.MULTILINE))
    for query in _blocks("promql"):
        names = set(re.findall(r"[\w:]*sqe_hrm_[\w:]+", query))
        assert {name for name in names if ":" in name} <= RECORDED, query
        raw = {name.removesuffix("_bucket") for name in names if ":" not in name}
        assert {name.removeprefix("sqe_hrm_") for name in raw} <= exposed, query
    file = tmp_path / "look.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "look", "rules": rules}]}))
    run("promtool", "check", "rules", str(file))


def test_every_link_of_the_runbook_leads_to_a_heading() -> None:
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (DEPLOY / "RUNBOOK.md").read_text())
    assert links
    for page, anchor in links:
        text = (DEPLOY / (page or "RUNBOOK.md")).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        assert not anchor or anchor in anchors, (page, anchor)


def test_every_command_of_the_runbook_exists() -> None:
    services = _yaml(DEPLOY / "compose.yaml")["services"]
    commands = "".join(_blocks("sh")).splitlines()
    assert commands
    for line in commands:
        words = line.split()
        if words[0] == "sqe-hrm":
            assert words[1] in COMMANDS, line
        else:
            assert words[:4] == ["docker", "compose", "-f", "deploy/compose.yaml"], line
            assert words[4] in {"exec", "logs", "ps"}, line
            assert services.keys() & set(words[5:]), line


def test_alertmanager_takes_its_configuration() -> None:
    run("amtool", "check-config", str(ALERTMANAGER))


def test_alertmanager_takes_the_examples_of_receivers(tmp_path: Path) -> None:
    text, count = re.subn(r"^(    )# ", r"\1", ALERTMANAGER.read_text(), flags=re.MULTILINE)
    assert count > 2
    file = tmp_path / "alertmanager.yml"
    file.write_text(text)
    assert {"webhook_configs", "email_configs"} <= {
        key for receiver in _yaml(file)["receivers"] for key in receiver
    }
    run("amtool", "check-config", str(file))


def test_nobody_is_told_until_a_receiver_has_an_address() -> None:
    receivers = _yaml(ALERTMANAGER)["receivers"]
    assert receivers == [{"name": name} for name in SEVERITIES.values()]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_told_by_its_severity(alert: str) -> None:
    severity = ALERTS[alert]["labels"]["severity"]
    labels = (f"alertname={alert}", f"severity={severity}", "agent=planner", "instance=w")
    route = ("config", "routes", "test", f"--config.file={ALERTMANAGER}")
    assert run("amtool", *route, *labels).strip() == SEVERITIES[severity]
