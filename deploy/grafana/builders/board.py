"""The frame of every dashboard: variables, annotations, links, rows.

Knows which values a reader can choose; nothing of what the panels ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    CustomVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.common import TimeZoneBrowser

from deploy.grafana.builders.panels import SOURCE, Link
from deploy.grafana.builders.queries import CHECKPOINT, FIRING, select

Variable = Builder[dashboard.VariableModel]

TAG = "sqe-hrm"
"""Each dashboard links to the others that have it."""

UID_OF = {"Overview": "sqe-hrm-overview", "Failures": "sqe-hrm-failures", "Fleet": "sqe-hrm-fleet"}


@dataclass(frozen=True)
class Section:
    """A row with its panels, which fill lines of 24 columns."""

    title: str
    panels: Sequence[Builder[dashboard.Panel]]


def datasource() -> Variable:
    """Choose the Prometheus that scrapes the workers and the monitor."""
    return DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def job() -> Variable:
    """Choose scrape jobs. The workers' and the monitor's may have any names."""
    return _labels(
        "job", "Scrape job", 'label_values({__name__=~"sqe_hrm_(evaluations_total|redis_up)"}, job)'
    )


def checkpoint() -> Variable:
    """Choose checkpoints that serve or served."""
    return _labels(
        "checkpoint", "Checkpoint", f"label_values({select('evaluations_total')}, checkpoint)"
    )


def agent() -> Variable:
    """Choose agents, of which the monitor knows a hundred by name."""
    return _labels("agent", "Agent", f"label_values({select('agent_evaluations_total')}, agent)")


def category() -> Variable:
    """Choose categories of prompts."""
    metric = select("evaluations_total", CHECKPOINT)
    return _labels("category", "Category", f"label_values({metric}, category)")


def instance() -> Variable:
    """Choose addresses of workers."""
    return _labels("instance", "Worker's address", f"label_values({select('ready')}, instance)")


def device() -> Variable:
    """Choose devices of several workers that share an address; a single worker's has none."""
    return _labels(
        "device", "Device", f"label_values({select('worker_up')}, device)", everything=".*"
    )


def choice(name: str, label: str, values: str, chosen: str) -> Variable:
    """Choose one of `values`, which are separated by commas and may be `text : value`."""
    value = next(
        each.partition(" : ")[2] or each
        for each in values.split(",")
        if each.partition(" : ")[0] == chosen
    )
    option = dashboard.VariableOption(selected=True, text=chosen, value=value)
    return CustomVariable(name).label(label).values(values).current(option)


def window() -> Variable:
    """Choose how long shares and latencies are averaged."""
    return choice("window", "Averaged over", "5m,30m,1h,6h,1d", "30m")


def link_to(board: str, title: str, **variables: str) -> Link:
    """Build a link to the dashboard `board`, with the time and jobs of this one."""
    keep = "${__url_time_range}&${datasource:queryparam}&${job:queryparam}"
    more = "".join(f"&var-{name}={value}" for name, value in variables.items())
    return Link(title, f"/d/{UID_OF[board]}?{keep}{more}")


def build(
    title: str, description: str, variables: Sequence[Variable], sections: Sequence[Section]
) -> dashboard.Dashboard:
    """Build the dashboard `title`."""
    board = (
        Dashboard(f"SQE-HRM {title}")
        .uid(UID_OF[title])
        .description(description)
        .tags([TAG])
        .timezone(TimeZoneBrowser)
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-6h", "now")
        .version(1)
        .variables([datasource(), job(), *variables])
        .annotations([_loads(), _alerts()])
        .link(_others())
    )
    number = 0
    for section in sections:
        number += 1
        board.with_row(Row(section.title).id(number))
        for panel in section.panels:
            number += 1
            panel.build().id_val = number
            board.with_panel(panel)
    return board.build()


def _labels(name: str, label: str, query: str, everything: str = ".+") -> Variable:
    """A variable of a label's values, all of them at first."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _loads() -> AnnotationQuery:
    """Mark the moments at which a worker began to serve a checkpoint."""
    return (
        _annotation("Checkpoint loaded", "blue")
        .expr(f"{select('checkpoint_loaded_timestamp_seconds')} * 1000")
        .use_value_for_time(True)
        .title_format("{{checkpoint}} loaded")
        .text_format("{{instance}} {{device}} {{process}}")
    )


def _alerts() -> AnnotationQuery:
    """Mark the times in which an alert fires."""
    return (
        _annotation("Alerts", "red")
        .expr(FIRING)
        .title_format("{{alertname}}")
        .text_format("{{agent}} {{category}} {{checkpoint}} {{instance}} {{device}} {{queue}}")
    )


def _annotation(name: str, color: str) -> AnnotationQuery:
    return AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color)


def _others() -> DashboardLink:
    """Link to the other dashboards, with the time and the variables that they share."""
    return (
        DashboardLink("SQE-HRM")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .placement("")
        .include_vars(True)
        .keep_time(True)
    )
