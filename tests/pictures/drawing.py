"""A dashboard drawn with matplotlib, from what a Prometheus answers to its queries.

Panels have the places, titles, units, colours and names of series that the dashboard's file gives
them. It is no Grafana, but it shows what its lines and tables say.
"""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MultipleLocator
from PIL import Image

from tests.pictures.answers import Answers, Panel, Source, named
from tests.pictures.values import COLORS, Format
from tests.support.dashboards import Board

COLUMN, LINE = 0.68, 0.34
"""Inches of one of Grafana's columns and lines."""

HEAD = 1.05
"""Inches for what the picture is."""

PALETTE = (
    "#3274d9",
    "#e8871e",
    "#3f9c4b",
    "#8f3bb8",
    "#d1323f",
    "#0f8c8c",
    "#c4a000",
    "#7a6352",
    "#e05fae",
    "#5b6470",
    "#8ab8ff",
    "#96d98d",
)

COLORS_KEPT = 128
"""Colours of a picture: more than are drawn, except at the edges of letters."""

MOST_NAMES = 8
"""Series that a legend names."""

MOST_ROWS = 7
"""Rows of a table that fit into its panel."""


def draw(board: Board, source: Source, caption: str, file: Path) -> None:
    """Draw `board` into a PNG file, with `caption` above it."""
    bottom = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in board.json["panels"])
    width, height = 24 * COLUMN, bottom * LINE + HEAD
    with mpl.rc_context({"font.size": 7, "axes.titlesize": 8, "font.family": "DejaVu Sans"}):
        figure = plt.figure(figsize=(width, height), facecolor="#f4f5f5")
        figure.text(0.2 / width, 1 - 0.35 / height, board.json["title"], size=15, weight="bold")
        figure.text(
            0.2 / width,
            1 - 0.55 / height,
            "\n".join(textwrap.wrap(caption, 215)),
            size=8,
            va="top",
            color=COLORS["text"],
        )
        for panel in board.json["panels"]:
            _Place(figure, panel, board, source, width, height).draw()
        figure.savefig(file, dpi=80)
        plt.close(figure)
    # A quarter of the bytes, and nobody sees it.
    with Image.open(file) as picture:
        picture.quantize(COLORS_KEPT).save(file, optimize=True)


class _Place:
    """A panel, its place in the figure, and its answers."""

    def __init__(
        self,
        figure: Figure,
        panel: Panel,
        board: Board,
        source: Source,
        width: float,
        height: float,
    ) -> None:
        self.figure = figure
        self.panel = panel
        self.board = board
        self.source = source
        self.answers = Answers(panel, board, source)
        at = panel["gridPos"]
        self.inches = (at["w"] * COLUMN, at["h"] * LINE)
        self.box = (
            at["x"] * COLUMN / width,
            1 - (HEAD + (at["y"] + at["h"]) * LINE) / height,
            at["w"] * COLUMN / width,
            at["h"] * LINE / height,
        )
        self.size = (width, height)

    def draw(self) -> None:
        if self.panel["type"] == "row":
            self._text(0.1, 0.12, self.panel["title"], size=10, weight="bold")
            return
        x, y, w, h = self.box
        gap = (0.04 / self.size[0], 0.04 / self.size[1])
        self.figure.add_artist(
            Rectangle(
                (x + gap[0], y + gap[1]),
                w - 2 * gap[0],
                h - 2 * gap[1],
                transform=self.figure.transFigure,
                facecolor="white",
                edgecolor="#d8d9da",
                linewidth=0.6,
                zorder=-1,
            )
        )
        self._text(0.1, self.inches[1] - 0.2, self.panel["title"], size=8.5, weight="bold")
        kinds: dict[str, Callable[[], None]] = {
            "stat": self._stat,
            "timeseries": self._lines,
            "bargauge": self._bars,
            "state-timeline": self._states,
            "table": lambda: self._grid(*self.answers.table()),
            "text": self._words,
        }
        kinds[self.panel["type"]]()

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:  # noqa: ANN401
        """Write at a place in inches from the panel's lower left corner."""
        width, height = self.size
        self.figure.text(self.box[0] + x / width, self.box[1] + y / height, text, **style)

    def _axes(self, *, below: float, left: float = 0.62) -> Axes:
        """Axes inside the panel, with inches free below and at the left."""
        width, height = self.size
        return self.figure.add_axes(
            (
                self.box[0] + left / width,
                self.box[1] + below / height,
                self.box[2] - (left + 0.18) / width,
                self.box[3] - (below + 0.34) / height,
            )
        )

    def _empty(self) -> None:
        text = self.answers.defaults.get("noValue", "")
        self._text(
            self.inches[0] / 2, self.inches[1] / 2 - 0.1, text, ha="center", color=COLORS["text"]
        )

    def _stat(self) -> None:
        shown = [
            (
                named(target["legendFormat"], labels),
                value,
                self.answers.format(byFrameRefID=target["refId"]),
            )
            for target in self.panel["targets"]
            for labels, value in self.answers.instant(target)
        ]
        if not shown:
            self._empty()
        for place, (name, value, form) in enumerate(shown):
            x = self.inches[0] * (2 * place + 1) / (2 * len(shown))
            size = 17 if place == 0 or len(shown) > 2 else 12
            middle = self.inches[1] / 2 - 0.1
            style = {"ha": "center", "va": "center"}
            self._text(x, middle, form.text(value), size=size, color=form.color(value), **style)
            if name != self.panel["title"]:
                self._text(x, middle - 0.38, name, size=7, color=COLORS["text"], **style)

    def _lines(self) -> None:
        series = self.answers.series()
        if not any(math.isfinite(value) for _, _, values in series for value in values):
            self._empty()
            return
        names = min(len(series), MOST_NAMES)
        columns = max(1, int(self.inches[0] / 2.6))
        axes = self._axes(below=0.36 + 0.15 * math.ceil(names / columns))
        custom = self.answers.defaults["custom"]
        if custom.get("stacking", {}).get("mode") == "normal":
            _stacked(axes, series)
        else:
            self._band(axes, {name: (times, values) for name, times, values in series})
            for place, (name, times, values) in enumerate(series):
                axes.plot(times, values, label=name, **self._style(name, place))
        self._scale(axes, custom)
        self._marks(axes)
        if names:
            handles, labels = axes.get_legend_handles_labels()
            more = len(series) - names
            labels = (
                [*labels[: names - 1], f"{labels[names - 1]} … {more} more"] if more else labels
            )
            axes.legend(
                handles[:names],
                labels,
                loc="upper left",
                bbox_to_anchor=(-0.06, -0.16 * 1.6 / (self.inches[1] - 0.9)),
                ncols=columns,
                frameon=False,
                fontsize=6.3,
                handlelength=1.2,
                columnspacing=1.0,
                labelspacing=0.25,
                borderaxespad=0,
            )

    def _band(self, axes: Axes, series: Mapping[str, tuple[list[float], list[float]]]) -> None:
        """Fill the area between the two series that an override names."""
        for override in self.panel["fieldConfig"]["overrides"]:
            properties = {each["id"]: each["value"] for each in override["properties"]}
            above, below = override["matcher"]["options"], properties.get("custom.fillBelowTo", "")
            if below in series and above in series:
                times, values = series[above]
                axes.fill_between(
                    times, values, series[below][1], color=COLORS["blue"], alpha=0.15, linewidth=0
                )

    def _style(self, name: str, place: int) -> dict[str, Any]:
        for override in self.panel["fieldConfig"]["overrides"]:
            kind, pattern = override["matcher"]["id"], override["matcher"]["options"]
            if kind == "byRegexp" and re.search(pattern.strip("/"), name):
                return {"color": COLORS["text"], "linestyle": "--", "linewidth": 0.8}
            if kind == "byName" and pattern == name:
                return {"color": COLORS["blue"], "linewidth": 0.4}
        return {"color": PALETTE[place % len(PALETTE)], "linewidth": 1.1}

    def _scale(self, axes: Axes, custom: Panel) -> None:
        form = Format.of({"unit": self.answers.defaults["unit"]})
        if custom.get("scaleDistribution", {}).get("type") == "symlog":
            axes.set_yscale("symlog", linthresh=0.01)
        low, high = axes.get_ylim()
        axes.set_ylim(
            min(low, custom.get("axisSoftMin", low)), max(high, custom.get("axisSoftMax", high))
        )
        if "axisSoftMin" in custom and low < 0 <= axes.dataLim.y0:
            axes.set_ylim(bottom=custom["axisSoftMin"])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form.text(value)))
        steps = self.answers.defaults.get("thresholds", {}).get("steps", ())
        if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
            axes.axhline(steps[1]["value"], color=COLORS["red"], linestyle="--", linewidth=0.9)
        self._time(axes)
        axes.grid(visible=True, color="#ececec", linewidth=0.6)

    def _time(self, axes: Axes) -> None:
        axes.set_xlim(self.source.start, self.source.end)
        axes.xaxis.set_major_locator(MultipleLocator(300))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _clock(value)))
        axes.tick_params(length=2, colors=COLORS["text"], labelsize=6.5)
        axes.spines[["top", "right"]].set_visible(False)

    def _marks(self, axes: Axes) -> None:
        """Mark loads of checkpoints, and the times at which alerts begin to fire."""
        loads, alerts = self.answers.events()
        for moments, color in ((loads, COLORS["blue"]), (alerts, COLORS["red"])):
            for moment in moments:
                axes.axvline(moment, color=color, linestyle=":", linewidth=1)

    def _bars(self) -> None:
        (target,) = self.panel["targets"]
        shown = sorted(self.answers.instant(target), key=lambda each: each[1])[-10:]
        if not shown:
            self._empty()
            return
        form = self.answers.format()
        axes = self._axes(below=0.15, left=1.75)
        values = [value for _, value in shown]
        axes.barh(range(len(shown)), values, color=PALETTE[0], height=0.6)
        axes.set_yticks(
            range(len(shown)), [named(target["legendFormat"], labels) for labels, _ in shown]
        )
        for place, value in enumerate(values):
            axes.text(max(value, 0), place, f" {form.text(value)}", va="center", size=6.5)
        axes.set_xlim(0, 1.25 * max(*values, 1e-9))
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=6.5)
        axes.spines[["top", "right", "bottom"]].set_visible(False)

    def _states(self) -> None:
        series = self.answers.series()
        if not series:
            self._empty()
            return
        form = self.answers.format()
        axes = self._axes(below=0.36, left=1.5)
        for row, (_, times, values) in enumerate(series):
            for time, value in zip(times, values, strict=True):
                if math.isfinite(value):
                    axes.barh(
                        row,
                        self.source.step,
                        left=time,
                        color=form.color(value),
                        height=0.6,
                        align="center",
                    )
        axes.set_yticks(range(len(series)), [name for name, _, _ in series])
        self._time(axes)

    def _grid(self, columns: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> None:
        if not rows:
            self._empty()
            return
        shown = rows[:MOST_ROWS]
        lengths = [
            max(len(name), *(len(row[place][0]) for row in shown)) + 2
            for place, name in enumerate(columns)
        ]
        inside = self.inches[0] - 0.3
        scale = inside / sum(lengths)
        line = min(0.27, (self.inches[1] - 0.6) / (len(shown) + 1))
        top = self.inches[1] - 0.5
        size = min(7.5, scale * 72 / 0.62)
        for number, row in enumerate([[(name, "none") for name in columns], *shown]):
            x = 0.15
            for (text, color), length in zip(row, lengths, strict=True):
                self._cell(x, top - number * line, length * scale, line, color)
                weight = "bold" if number == 0 else "normal"
                self._text(
                    x + 0.04, top - number * line, text, size=size, va="center", weight=weight
                )
                x += length * scale
        if len(rows) > len(shown):
            self._text(0.15, 0.12, f"… {len(rows) - len(shown)} more", size=6.5)

    def _cell(self, x: float, y: float, width: float, height: float, color: str) -> None:
        total_width, total_height = self.size
        self.figure.add_artist(
            Rectangle(
                (self.box[0] + x / total_width, self.box[1] + (y - height / 2) / total_height),
                width / total_width,
                height / total_height,
                transform=self.figure.transFigure,
                facecolor=color,
                edgecolor="#ececec",
                linewidth=0.5,
                alpha=0.75,
                zorder=0,
            )
        )

    def _words(self) -> None:
        values = {
            **self.source.values,
            "__from": f"{self.source.start * 1000:.0f}",
            "__to": f"{self.source.end * 1000:.0f}",
            "f": "$f",
        }
        text = self.board.filled(self.panel["options"]["content"], **values)
        self._text(
            0.2,
            self.inches[1] - 0.4,
            re.sub(r"```(sh)?\n", "", text).replace("$", r"\$"),
            va="top",
            size=7.5,
            family="DejaVu Sans Mono",
        )


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M")


def _stacked(axes: Axes, series: Sequence[tuple[str, list[float], list[float]]]) -> None:
    moments = sorted({time for _, times, _ in series for time in times})
    below = [0.0] * len(moments)
    for place, (name, times, values) in enumerate(series):
        known = dict(zip(times, values, strict=True))
        added = [known.get(moment, 0.0) for moment in moments]
        above = [
            base + (value if math.isfinite(value) else 0)
            for base, value in zip(below, added, strict=True)
        ]
        color = PALETTE[place % len(PALETTE)]
        axes.fill_between(moments, below, above, color=color, alpha=0.35, linewidth=0)
        axes.plot(moments, above, color=color, linewidth=0.9, label=name)
        below = above
