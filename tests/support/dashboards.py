"""The committed dashboards, and their queries with values in place of variables."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"

VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")
"""`$name`, `${name}` or `${name:format}`."""

SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\{([^}]*)\}")

MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')

GRAFANAS = {"__rate_interval": "1m", "__range": "1h"}
"""Variables of Grafana itself."""


@dataclass(frozen=True)
class Query:
    """An expression of a panel."""

    place: str
    """Dashboard, panel and letter."""
    expr: str
    panel: Mapping[str, Any]
    instant: bool
    legend: str


@dataclass(frozen=True)
class Board:
    """A dashboard as Grafana reads it."""

    file: str
    json: Mapping[str, Any]

    @property
    def uid(self) -> str:
        return str(self.json["uid"])

    @property
    def panels(self) -> list[dict[str, Any]]:
        """All panels that show something."""
        return [panel for panel in self.json["panels"] if panel["type"] != "row"]

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        return {variable["name"]: variable for variable in self.json["templating"]["list"]}

    @cached_property
    def queries(self) -> list[Query]:
        """The queries of all panels."""
        return [
            Query(
                f"{self.uid} / {panel['title']} / {target['refId']}",
                target["expr"],
                panel,
                target["instant"],
                target["legendFormat"],
            )
            for panel in self.panels
            for target in panel.get("targets", ())
        ]

    def query(self, title: str, ref: str = "A") -> str:
        """The expression of one panel, with its variables."""
        (found,) = [each for each in self.queries if each.place.endswith(f" / {title} / {ref}")]
        return found.expr

    @property
    def variable_queries(self) -> dict[str, str]:
        """The selectors whose labels are a variable's values, by the variable's name."""
        return {
            name: re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])[1]  # type: ignore[index]
            for name, variable in self.variables.items()
            if variable["type"] == "query"
        }

    @property
    def annotations(self) -> dict[str, str]:
        return {each["name"]: each["expr"] for each in self.json["annotations"]["list"]}

    @property
    def every_expression(self) -> dict[str, str]:
        """Everything that Prometheus is asked, by its place."""
        return {
            **{query.place: query.expr for query in self.queries},
            **{f"{self.uid} / ${name}": expr for name, expr in self.variable_queries.items()},
            **{f"{self.uid} / @{name}": expr for name, expr in self.annotations.items()},
        }

    @property
    def values(self) -> dict[str, str]:
        """The values of the variables when the dashboard is opened."""
        return {
            **GRAFANAS,
            **{
                name: variable.get("allValue") or variable["current"]["value"]
                for name, variable in self.variables.items()
                if variable["type"] != "datasource"
            },
        }

    def filled(self, expr: str, **values: str) -> str:
        """Put `values`, or those at opening, in place of the variables in `expr`."""
        known = {**self.values, **values}
        return VARIABLE.sub(lambda match: known[match[1] or match[2]], expr)


def boards() -> list[Board]:
    """Read every dashboard."""
    return [
        Board(file.name, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(FOLDER.glob("*.json"))
    ]


def selectors(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every metric that `expr` selects, with its matchers as written."""
    for metric, matchers in SELECTOR.findall(expr):
        yield metric, {label: f"{how}{value}" for label, how, value in MATCHER.findall(matchers)}
