"""The kinds of panels, so that a dashboard says only what differs from one to the next.

Knows how Grafana shows something: units, colours, tables, links. Widths are in Grafana's columns,
of which a dashboard has 24.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    prometheus,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    ScaleDistributionConfig,
    StackingConfig,
    TableSortByFieldState,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

SOURCE = common.DataSourceRef("prometheus", "${datasource}")
"""The data source that the reader chose."""

SHARE = units.PercentUnit
COUNT = units.Short
SECONDS = units.Seconds
BYTES = units.BytesIEC
PER_SECOND = "suffix: /s"

GREY, GREEN, ORANGE, RED = "text", "green", "orange", "red"

Steps = Sequence[tuple[float | None, str]]
"""Colours by the value from which on they hold; the first has no value."""

PLAIN: Steps = ((None, GREY),)
"""For a figure that is neither good nor bad."""

STAT_HEIGHT = 5
HEIGHT = 8


class _Panel(Protocol):
    """Methods that the SDK's builders of panels have in common."""

    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def datasource(self, datasource: common.DataSourceRef, /) -> Self: ...
    def targets(self, targets: list[Builder[Dataquery]], /) -> Self: ...
    def height(self, h: int, /) -> Self: ...
    def span(self, w: int, /) -> Self: ...
    def unit(self, unit: str, /) -> Self: ...
    def no_value(self, no_value: str, /) -> Self: ...
    def thresholds(self, thresholds: Builder[dashboard.ThresholdsConfig], /) -> Self: ...
    def data_links(self, links: list[Builder[dashboard.DashboardLink]], /) -> Self: ...


AnyPanel = TypeVar("AnyPanel", bound=_Panel)


@dataclass(frozen=True)
class Query:
    """An expression, and the name of its series: a template of labels, or a plain text."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Text:
    """The words of a panel: its title, what it is for, and what it says if it is empty."""

    title: str
    description: str
    no_value: str = "nothing in this time"


@dataclass(frozen=True)
class Column:
    """A figure of a table, for each value of the labels that its expression keeps."""

    title: str
    expr: str
    unit: str = COUNT
    steps: Steps = ()
    """Colours of the cell, if the value is good or bad."""
    decimals: int | None = None
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Texts and colours to show in place of values."""


@dataclass(frozen=True)
class Link:
    """A link from a panel's values to another dashboard, with the time range that is shown."""

    title: str
    url: str


@dataclass(frozen=True)
class Lines:
    """How a panel of lines differs from the plain one."""

    stacked: bool = False
    logarithmic: bool = False
    low: float | None = None
    """The axis begins here, or below if a value is lower."""
    high: float | None = None
    """The axis ends here, or above if a value is higher."""
    limit: float | None = None
    """Value from which on it is bad, drawn as a dashed line."""
    dashed: Sequence[str] = ()
    """Beginnings of the names of series to compare with."""
    band: tuple[str, str] | None = None
    """Names of the series above and below an area that is filled."""


PLAIN_LINES = Lines(low=0)


def stat_panel(
    words: Text,
    queries: Sequence[Query],
    *,
    unit: str,
    steps: Steps,
    width: int,
    height: int = STAT_HEIGHT,
    names: Mapping[str, tuple[str, str]] | None = None,
    link: Link | None = None,
) -> stat.Panel:
    """Show the value of this moment, in the colour of `steps`.

    Of several queries, the first has the unit and the colours; the others are counts that it is of.
    `names` are texts and colours to show in place of values.
    """
    panel = _framed(stat.Panel(), words, queries, width, height, instant=True)
    panel.unit(unit).thresholds(_thresholds(steps))
    panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    if unit == COUNT:
        panel.decimals(0)  # an increase is an estimate, hardly ever whole
    panel.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    if len(queries) > 1 or queries[0].legend != words.title:
        panel.text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    for place in range(1, len(queries)):
        number = {"unit": COUNT, "decimals": 0, "thresholds": _thresholds(PLAIN).build()}
        panel.override_by_query(_ref(place), _properties(number))
    if names:
        panel.mappings([_value_map(names)])
    return _linked(panel, link)


def lines_panel(
    words: Text,
    queries: Sequence[Query],
    *,
    unit: str,
    width: int,
    look: Lines = PLAIN_LINES,
    link: Link | None = None,
) -> timeseries.Panel:
    """Show values over time."""
    panel = _framed(timeseries.Panel(), words, queries, width, HEIGHT)
    panel.unit(unit).line_width(1).fill_opacity(30 if look.stacked else 0)
    panel.show_points(common.VisibilityMode.NEVER)
    panel.legend(
        VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if look.low is not None:
        panel.axis_soft_min(look.low)
    if look.high is not None:
        panel.axis_soft_max(look.high)
    if look.stacked:
        panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL))
    if look.logarithmic:
        panel.scale_distribution(
            ScaleDistributionConfig().type(common.ScaleDistribution.SYMLOG).log(10)
        )
    if look.limit is not None:
        panel.thresholds(_thresholds(((None, "transparent"), (look.limit, RED))))
        panel.thresholds_style(
            GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for name in look.dashed:
        dash = {"fill": "dash", "dash": [8, 6]}
        panel.override_by_regexp(
            f"/^{name}/", _properties({"custom.lineStyle": dash, "color": _fixed(GREY)})
        )
    if look.band is not None:
        above, below = look.band
        edge = {"custom.lineWidth": 0, "color": _fixed("blue")}
        filled = {"custom.fillBelowTo": below, "custom.fillOpacity": 20}
        panel.override_by_name(above, _properties({**edge, **filled}))
        panel.override_by_name(below, _properties(edge))
    return _linked(panel, link)


def bars_panel(
    words: Text, queries: Sequence[Query], *, unit: str, width: int, steps: Steps = PLAIN
) -> bargauge.Panel:
    """Show the values of this moment as bars beside each other."""
    panel = _framed(bargauge.Panel(), words, queries, width, HEIGHT, instant=True)
    panel.unit(unit).thresholds(_thresholds(steps)).min(0)
    panel.orientation(common.VizOrientation.HORIZONTAL)
    panel.display_mode(common.BarGaugeDisplayMode.BASIC)
    return panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))


def states_panel(
    words: Text, queries: Sequence[Query], *, names: Mapping[str, tuple[str, str]], width: int
) -> statetimeline.Panel:
    """Show over time which of the states in `names` holds."""
    panel = _framed(statetimeline.Panel(), words, queries, width, HEIGHT)
    return panel.unit(COUNT).mappings([_value_map(names)]).thresholds(_thresholds(PLAIN))


def table_panel(
    words: Text,
    labels: Mapping[str, str],
    columns: Sequence[Column],
    *,
    width: int,
    sort_by: str,
    height: int = HEIGHT,
    link: Link | None = None,
) -> table.Panel:
    """Show a row for each value of `labels` at this moment, the largest `sort_by` first.

    `labels` gives the titles of the columns that name the row. Every expression keeps these labels.
    """
    queries = [Query(column.expr, column.title) for column in columns]
    panel = _framed(table.Panel(), words, queries, width, height, instant=True, rows=True)
    panel.unit(COUNT)
    values = (
        {_value(place): column.title for place, column in enumerate(columns)}
        if len(columns) > 1
        else {"Value": columns[0].title}
    )
    titles = {**labels, **values}
    panel.with_transformation(dashboard.DataTransformerConfig("merge", options={}))
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            "organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(titles)},
                "renameByName": titles,
            },
        )
    )
    for column in columns:
        panel.override_by_name(column.title, _cells(column))
    panel.sort_by([TableSortByFieldState().display_name(sort_by).desc(True)])
    return _linked(panel, link)


def matrix_panel(
    words: Text, expr: str, *, row: str, column: str, unit: str, steps: Steps, width: int
) -> table.Panel:
    """Show a value for each pair of the labels `row` and `column`, its cell in a colour."""
    query = Query(expr, f"{{{{{row}}}}} {{{{{column}}}}}")
    panel = _framed(table.Panel(), words, [query], width, HEIGHT, instant=True, rows=True)
    panel.unit(unit).decimals(0).thresholds(_thresholds(steps))
    panel.color_scheme(FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    panel.cell_options(common.TableColoredBackgroundCellOptions())
    options = {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "null"}
    return panel.with_transformation(
        dashboard.DataTransformerConfig("groupingToMatrix", options=options)
    )


def text_panel(words: Text, content: str, *, width: int, height: int) -> text.Panel:
    """Show a text in Markdown, in which variables are replaced."""
    panel = text.Panel().title(words.title).description(words.description)
    panel.span(width).height(height).mode(TextMode.MARKDOWN)
    return panel.content(content)


def _framed(
    panel: AnyPanel,
    words: Text,
    queries: Sequence[Query],
    width: int,
    height: int,
    *,
    instant: bool = False,
    rows: bool = False,
) -> AnyPanel:
    """Give a panel its words, size and queries."""
    panel.title(words.title).description(words.description).no_value(words.no_value)
    panel.datasource(SOURCE).span(width).height(height)
    return panel.targets(
        [
            _target(query, _ref(place), instant=instant, rows=rows)
            for place, query in enumerate(queries)
        ]
    )


def _target(query: Query, ref: str, *, instant: bool, rows: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expr).datasource(SOURCE)
    target.legend_format(query.legend)
    target.format(PromQueryFormat.TABLE if rows else PromQueryFormat.TIME_SERIES)
    return target.instant() if instant else target.range()


def _linked(panel: AnyPanel, link: Link | None) -> AnyPanel:
    return panel if link is None else panel.data_links([DashboardLink(link.title).url(link.url)])


def _cells(column: Column) -> list[dashboard.DynamicConfigValue]:
    cells: dict[str, object] = {"unit": column.unit}
    if column.decimals is not None:
        cells["decimals"] = column.decimals
    if column.names:
        cells["mappings"] = [_value_map(column.names)]
    if column.steps:
        cells["thresholds"] = _thresholds(column.steps).build()
        cells["custom.cellOptions"] = {"type": common.TableCellDisplayMode.COLOR_BACKGROUND}
    return _properties(cells)


def _properties(values: Mapping[str, object]) -> list[dashboard.DynamicConfigValue]:
    return [dashboard.DynamicConfigValue(name, value) for name, value in values.items()]


def _fixed(color: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": color}


def _thresholds(steps: Steps) -> ThresholdsConfig:
    return (
        ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value, color) for value, color in steps])
    )


def _value_map(names: Mapping[str, tuple[str, str]]) -> dashboard.ValueMap:
    return dashboard.ValueMap(
        {
            value: dashboard.ValueMappingResult(text=name, color=color, index=place)
            for place, (value, (name, color)) in enumerate(names.items())
        }
    )


def _ref(place: int) -> str:
    return chr(ord("A") + place)


def _value(place: int) -> str:
    """The name that Grafana gives to the values of one of several queries."""
    return f"Value #{_ref(place)}"
