"""A real Prometheus that scrapes what a test started; `promtool` for rules that it makes up."""

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.debian import program
from tests.support.processes import wait_for
from worker.broker import embedded
from worker.child import end_child, start_child

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules" / "sqe_hrm.yml"


def shipped_rules(*, at_once: bool = False) -> dict[str, Any]:
    """The rules of `deploy/`; with `at_once`, none waits longer than the server's interval."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    if at_once:
        for group in rules["groups"]:
            group.pop("interval", None)
    return rules


def promtool(folder: Path, command: str, content: Mapping[str, Any]) -> None:
    """Run `promtool COMMAND rules` over a file with `content`; its complaints are the failure."""
    file = folder / "rules.yml"
    file.write_text(yaml.safe_dump(dict(content)))
    done = subprocess.run(
        [program("promtool"), command, "rules", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


Sample = tuple[dict[str, str], float]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def instant(self, expr: str) -> list[Sample]:
        """The value of each series of `expr` now."""
        return [
            (series["metric"], float(series["value"][1]))
            for series in self._ask("query", query=expr)["result"]
        ]

    def range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Every series of `expr` from `start` to `end`, in Unix seconds."""
        found = self._ask("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        result: list[dict[str, Any]] = found["result"]
        return result

    def answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(  # noqa: S310 - a URL of this test
                f"{self.url}/-/ready"
            ),
        ):
            return True
        return False

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        data = urllib.parse.urlencode(parameters).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}", data) as reply:  # noqa: S310
            found: dict[str, Any] = json.load(reply)["data"]
        return found


@contextlib.contextmanager
def prometheus(
    folder: Path, jobs: Mapping[str, Sequence[str]], *, seconds: float
) -> Iterator[Prometheus]:
    """A server with the rules of `deploy/` that scrapes the addresses of each job.

    `seconds` are those between two scrapes, and between two evaluations of the rules.
    """
    every = f"{round(seconds * 1000)}ms"
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": list(targets)}]}
            for name, targets in jobs.items()
        ],
    }
    place = folder / "prometheus"
    place.mkdir()
    (place / "prometheus.yml").write_text(yaml.safe_dump(config))
    (place / "rules.yml").write_text(yaml.safe_dump(shipped_rules(at_once=True)))
    address = f"127.0.0.1:{embedded._free_port()}"
    command = [
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with (place / "log").open("wb") as log:
        process = start_child(command, log=log, cwd=place)
    server = Prometheus(f"http://{address}")
    try:
        wait_for(server.answers, "Prometheus")
        yield server
    finally:
        end_child(process)
