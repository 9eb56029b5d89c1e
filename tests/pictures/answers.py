"""A Prometheus's answers to a panel's queries, arranged as Grafana would show them.

Knows a dashboard's file: queries, names of series, transformations of tables. Draws nothing.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.pictures.values import COLORS, Format
from tests.support.dashboards import Board
from tests.support.prometheus import Prometheus, Sample

Panel = Mapping[str, Any]

Series = tuple[str, list[float], list[float]]
"""Name, times in Unix seconds, and values; no number wherever a sample is missing."""

Cell = tuple[str, str]
"""Text and background."""


@dataclass(frozen=True)
class Source:
    """The source of the figures, and their time."""

    prometheus: Prometheus
    start: float
    end: float
    values: Mapping[str, str]
    """Values of variables, in place of those at opening."""

    @property
    def step(self) -> float:
        """Seconds between two points of a line."""
        return max(1.0, (self.end - self.start) / 300)


@dataclass(frozen=True)
class Answers:
    """The answers to the queries of one panel of a dashboard."""

    panel: Panel
    board: Board
    source: Source

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The configuration of all fields."""
        defaults: Mapping[str, Any] = self.panel["fieldConfig"]["defaults"]
        return defaults

    def _filled(self, expr: str) -> str:
        return self.board.filled(expr, **self.source.values)

    def instant(self, target: Panel) -> list[Sample]:
        """The values of one target at the end, those that are numbers."""
        end = f"({self._filled(target['expr'])})"
        found = self.source.prometheus.range(end, self.source.end, self.source.end, 1)
        values = [(series["metric"], float(series["values"][0][1])) for series in found]
        return [(labels, value) for labels, value in values if math.isfinite(value)]

    def format(self, **matcher: str) -> Format:
        """The format of a field: the panel's, with the properties of the override that matches."""
        config = dict(self.defaults)
        for override in self.panel["fieldConfig"]["overrides"]:
            if override["matcher"] in [{"id": k, "options": v} for k, v in matcher.items()]:
                config |= {each["id"]: each["value"] for each in override["properties"]}
        return Format.of(config)

    def series(self) -> list[Series]:
        """The series of all queries over the time, by name."""
        found = []
        for target in self.panel["targets"]:
            source = self.source
            series = source.prometheus.range(
                self._filled(target["expr"]), source.start, source.end, source.step
            )
            for each in series:
                times, values = _with_gaps(each["values"], source.step)
                found.append((named(target["legendFormat"], each["metric"]), times, values))
        return sorted(found, key=lambda each: each[0])

    def events(self) -> tuple[set[float], set[float]]:
        """The times at which checkpoints were loaded, and at which alerts began to fire."""
        source = self.source
        loads, alerts = (
            source.prometheus.range(
                f"({self._filled(expr)})", source.start, source.end, source.step
            )
            for expr in self.board.annotations.values()
        )
        loaded = {float(value) / 1000 for series in loads for _, value in series["values"]}
        return (
            {moment for moment in loaded if moment > source.start},
            {float(series["values"][0][0]) for series in alerts},
        )

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """The titles of the columns, and the rows, the largest first."""
        transformations = {each["id"]: each["options"] for each in self.panel["transformations"]}
        if "groupingToMatrix" in transformations:
            return self._matrix(transformations["groupingToMatrix"])
        places: dict[str, int] = transformations["organize"]["indexByName"]
        renamed: dict[str, str] = transformations["organize"]["renameByName"]
        titles = {name: renamed[name] for name in sorted(places, key=places.__getitem__)}
        labels = [name for name in titles if not name.startswith("Value")]
        rows: dict[tuple[str, ...], dict[str, float]] = {}
        for target in self.panel["targets"]:
            before = list(rows)
            for found, value in self.instant(target):
                row = rows.setdefault(_row_of(found, labels, before), {})
                row[target["legendFormat"]] = value
        (order,) = self.panel["options"]["sortBy"]
        ranked = sorted(
            rows.items(),
            key=lambda each: each[1].get(order["displayName"], -math.inf),
            reverse=order["desc"],
        )
        columns = [titles[name] for name in titles]
        formats = {name: self.format(byName=name) for name in columns[len(labels) :]}
        return (
            columns,
            [
                [
                    *((text, "none") for text in key),
                    *(
                        (form.text(row[name]), _background(form, row[name]))
                        if name in row
                        else ("", "none")
                        for name, form in formats.items()
                    ),
                ]
                for key, row in ranked
            ],
        )

    def _matrix(self, options: Mapping[str, str]) -> tuple[list[str], list[list[Cell]]]:
        (target,) = self.panel["targets"]
        cells = {
            (labels[options["rowField"]], labels[options["columnField"]]): value
            for labels, value in self.instant(target)
        }
        form = self.format()
        columns = sorted({column for _, column in cells})
        return (
            [f"{options['rowField']} \\ {options['columnField']}", *columns],
            [
                [
                    (row, "none"),
                    *(
                        (form.text(cells[row, column]), _background(form, cells[row, column]))
                        if (row, column) in cells
                        else ("", "none")
                        for column in columns
                    ),
                ]
                for row in sorted({row for row, _ in cells})
            ],
        )


def named(template: str, labels: Mapping[str, str]) -> str:
    """The name of a series: `template` with the values of labels."""
    name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)
    return name.strip() or "value"


def _row_of(
    found: Mapping[str, str], labels: Sequence[str], rows: Iterable[tuple[str, ...]]
) -> tuple[str, ...]:
    """The row of an earlier query with all labels of `found`, as Grafana merges; or a new one."""
    for row in rows:
        if found.items() <= dict(zip(labels, row, strict=True)).items():
            return row
    return tuple(found.get(label, "") for label in labels)


def _with_gaps(
    samples: Sequence[tuple[float, str]], step: float
) -> tuple[list[float], list[float]]:
    """Times and values, with no value wherever samples are missing."""
    times: list[float] = []
    values: list[float] = []
    before = None
    for moment, text in samples:
        if before is not None and moment - before > 1.5 * step:
            times.append(before + step)
            values.append(math.nan)
        times.append(moment)
        values.append(float(text))
        before = moment
    return times, values


def _background(form: Format, value: float) -> str:
    color = form.color(value)
    return "none" if color == COLORS["text"] else color
