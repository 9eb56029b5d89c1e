"""The shipped configuration in a real Alertmanager: which alerts keep others quiet.

It has to be installed, because Debian's looks for its templates in /usr/share.
"""

import contextlib
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import wait_for
from worker.broker import embedded
from worker.child import end_child, start_child

CONFIG = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"

PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Alertmanager is not installed")

DOWN = (
    "SQEHRMNoWorker",
    "SQEHRMWorkerNotReady",
    "SQEHRMOldestMessage",
    "SQEHRMQueueGrowing",
    "SQEHRMCanaryMissing",
)
"""Alerts that fire, among others, while no worker is up."""

LAST = "last-"
"""How the instances begin of the alerts that come last."""


class Alertmanager:
    """A running Alertmanager."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v2"
        self._fired = 0

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._ask("/status"))
        return False

    def fire(self, *alerts: dict[str, str]) -> None:
        """Tell it of alerts by their labels, as Prometheus does, and wait until it acts on them.

        It answers before the alerts keep others quiet, which it does for one alert after the other.
        So a pair comes last of which one keeps the other quiet.
        """
        self._fired += 1
        worker = {"instance": f"{LAST}{self._fired}"}
        last = named("SQEHRMSelfTestFailing", "SQEHRMWorkerApart", **worker)
        body = json.dumps([{"labels": labels} for labels in (*alerts, *last)])
        self._ask("/alerts", body.encode())
        wait_for(lambda: worker["instance"] in self._instances(inhibited=True), "the alerts")

    def told(self) -> set[str]:
        """The alerts that it would tell somebody of."""
        return {
            labels["alertname"]
            for labels in self._labels(inhibited=False)
            if not labels.get("instance", "").startswith(LAST)
        }

    def _instances(self, *, inhibited: bool) -> set[str]:
        return {labels.get("instance", "") for labels in self._labels(inhibited=inhibited)}

    def _labels(self, *, inhibited: bool) -> list[dict[str, str]]:
        other = "active" if inhibited else "inhibited"
        return [alert["labels"] for alert in self._ask(f"/alerts?{other}=false")]

    def _ask(self, path: str, body: bytes | None = None) -> Any:  # noqa: ANN401 - any answer
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    address = f"127.0.0.1:{embedded._free_port()}"
    command = [
        str(PROGRAM),
        f"--config.file={CONFIG}",
        f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = start_child(command, log=log, cwd=tmp_path)
    running = Alertmanager(f"http://{address}")
    try:
        wait_for(running.is_ready, "an Alertmanager")
        yield running
    finally:
        end_child(process)


def named(*names: str, **labels: str) -> list[dict[str, str]]:
    return [{"alertname": name, **labels} for name in names]


def test_the_cause_is_told_and_not_what_follows(alertmanager: Alertmanager) -> None:
    changed = {"alertname": "SQEHRMAgentChanged", "agent": "planner", "category": "ci_cd"}
    alertmanager.fire(changed, *named(*DOWN[1:]))
    assert alertmanager.told() == {"SQEHRMAgentChanged", *DOWN[1:]}
    alertmanager.fire(*named("SQEHRMCanaryFailing"))
    assert alertmanager.told() == {"SQEHRMCanaryFailing", *DOWN[1:]}
    alertmanager.fire(*named("SQEHRMNoWorker"))
    assert alertmanager.told() == {"SQEHRMCanaryFailing", "SQEHRMNoWorker"}
    # Redis keeps the alert quiet that keeps the others quiet.
    alertmanager.fire({"alertname": "SQEHRMRedisUnreachable", "instance": "monitor"})
    assert alertmanager.told() == {"SQEHRMCanaryFailing", "SQEHRMRedisUnreachable"}


def test_a_broken_worker_keeps_quiet_only_what_is_said_of_itself(
    alertmanager: Alertmanager,
) -> None:
    broken = {"job": "pods", "instance": "w", "device": "cuda:0"}
    alertmanager.fire(
        {"alertname": "SQEHRMSelfTestFailing", **broken},
        {"alertname": "SQEHRMWorkerNotConsuming", **broken},
        {"alertname": "SQEHRMWorkerApart", **broken, "device": "cuda:1", "checkpoint": "a"},
    )
    assert alertmanager.told() == {"SQEHRMSelfTestFailing", "SQEHRMWorkerApart"}
