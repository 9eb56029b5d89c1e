"""Scrapes at simulated times, and the shipped rules evaluated over them by `promtool`.

So names and labels of real metrics, the rules and Prometheus itself are tested together, and hours
pass in seconds.
"""

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from prometheus_client.samples import Sample

from tests.support.debian import program
from worker.telemetry.families import PREFIX

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules" / "sqe_hrm.yml"

Labels = tuple[tuple[str, str], ...]

Expected = Mapping[Labels, float]
"""Values by labels, without a metric's name."""


class History:
    """Everything that Prometheus scraped from the beginning, once a minute."""

    def __init__(self) -> None:
        self.minutes = 0
        self._series: dict[str, list[str]] = {}

    def scrape(self, pages: Mapping[tuple[str, str], Iterable[Sample]]) -> None:
        """Add the samples of all pages, by job and instance, as they are a minute later."""
        for (job, instance), samples in pages.items():
            added = {"job": job, "instance": instance}
            self._add(Sample("up", added, 1))
            for sample in samples:
                if sample.name.startswith(PREFIX):
                    self._add(sample._replace(labels={**sample.labels, **added}))
        self.minutes += 1
        for values in self._series.values():
            values.extend(["_"] * (self.minutes - len(values)))

    def _add(self, sample: Sample) -> None:
        labels = ", ".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
        values = self._series.setdefault(f"{sample.name}{{{labels}}}", ["_"] * self.minutes)
        values.append(repr(float(sample.value)))

    def check(self, folder: Path, expected: Iterable[tuple[int, str, Expected]]) -> None:
        """Evaluate queries over the recordings and alerts; fails with what they gave instead.

        Args:
            folder: Folder for promtool's input.
            expected: For each query the minute at which it is asked, the query, and its result.
        """
        groups = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
        test = {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": " ".join(values)}
                for series, values in self._series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": f"{minute}m",
                    "exp_samples": [
                        {"labels": _written(labels), "value": value}
                        for labels, value in result.items()
                    ],
                }
                for minute, query, result in expected
            ],
        }
        file = folder / "history.yml"
        document = {
            "rule_files": [str(RULES)],
            "evaluation_interval": "1m",
            "group_eval_order": groups,
            "tests": [test],
        }
        file.write_text(yaml.safe_dump(document))
        command = [program("promtool"), "test", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _written(labels: Labels) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels) + "}"
