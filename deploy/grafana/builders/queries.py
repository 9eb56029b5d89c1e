"""PromQL for the panels: selectors that obey the dashboards' variables, and shares with intervals.

Functions return expressions as text, which bind at least as strongly as a product.
"""

from collections.abc import Sequence

JOB = 'job=~"$job"'
CHECKPOINT = 'checkpoint=~"$checkpoint"'
LIVE = 'lane="live"'
KNOWN = 'known="true"'
SOLVED = 'outcome="solved"'
UNSOLVED = 'outcome="unsolved"'
LIVE_QUEUE = 'queue="sqe.evaluate"'

FIRING = 'ALERTS{alertstate="firing", alertname=~"SQEHRM.+"}'
"""Alerts that fire. They have no job, since sums have none."""

WINDOW = "$window"
"""Averages are taken over the time that the variable names, 30 minutes by default: as the alerts
do, and long enough for a share to mean something."""

RATE = "$__rate_interval"
"""Grafana's shortest time that holds a rate, for figures that are plenty at any moment."""

ENOUGH = 20
"""Fewer messages prove nothing: of 20, the interval of a share still spans 16 points at its
narrowest. The alerts begin there as well."""


def select(metric: str, *matchers: str) -> str:
    """Select a metric of the jobs that the dashboard shows."""
    return f"sqe_hrm_{metric}{{{', '.join((JOB, *matchers))}}}"


def increase(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Count what was added within `window`, for each value of the labels `by`."""
    return f"sum{_by(by)}(increase({select(metric, *matchers)}[{window}]))"


def rate(metric: str, *matchers: str, by: str = "", window: str = RATE) -> str:
    """Count what is added a second, for each value of the labels `by`."""
    return f"sum{_by(by)}(rate({select(metric, *matchers)}[{window}]))"


def fleet_increase(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Count what was added to a figure of the monitor. Several monitors report the same figures."""
    inner = ", ".join(("job", "instance", *filter(None, [by])))
    return f"max{_by(by)}({increase(metric, *matchers, by=inner, window=window)})"


def largest(metric: str, *matchers: str, by: str = "") -> str:
    """Return the largest report of a gauge, for each value of the labels `by`."""
    return f"max{_by(by)}({select(metric, *matchers)})"


def total(metric: str, *matchers: str, by: str = "") -> str:
    """Add up a gauge, for each value of the labels `by`."""
    return f"sum{_by(by)}({select(metric, *matchers)})"


def share(part: str, whole: str, *, at_least: float = 0, on: str | None = None) -> str:
    """Divide `part` by `whole`; no value if the whole is 0, or below `at_least`.

    With `on`, several parts belong to one whole with equal labels `on`, or to a single one if `on`
    is empty.
    """
    condition = f">= {at_least:g}" if at_least else "> 0"
    matching = "" if on is None else f"on ({on}) group_left () "
    return f"{part} / {matching}({whole} {condition})"


def wilson(part: str, whole: str, end: str) -> str:
    """Return an end, `low` or `high`, of the 95 % Wilson interval of a share.

    The interval of Wilson (1927), with z = 1.96: z² = 3.84, z²/2 = 1.92 and z²/4 = 0.96.
    """
    sign = {"low": "-", "high": "+"}[end]
    root = f"sqrt({part} * ({whole} - {part}) / ({whole} > 0) + 0.96)"
    return f"({part} + 1.92 {sign} 1.96 * {root}) / ({whole} + 3.84)"


def quantile(
    level: float, histogram: str, *matchers: str, by: str = "", window: str = WINDOW
) -> str:
    """Estimate a quantile of a histogram, for each value of the labels `by`."""
    labels = ", ".join(("le", *filter(None, [by])))
    buckets = rate(f"{histogram}_bucket", *matchers, by=labels, window=window)
    return f"histogram_quantile({level:g}, {buckets})"


def mean(histogram: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Return the mean of a histogram, for each value of the labels `by`."""
    return share(
        rate(f"{histogram}_sum", *matchers, by=by, window=window),
        rate(f"{histogram}_count", *matchers, by=by, window=window),
    )


def baseline(bound: str) -> str:
    """Return a checkpoint's own measured rate (`rate`), or an end of its interval."""
    return largest(
        "checkpoint_baseline_solved_ratio", CHECKPOINT, f'bound="{bound}"', by="checkpoint"
    )


def joined(value: str, infos: Sequence[tuple[str, str]], on: str) -> str:
    """Give `value` the labels of info metrics: pairs of a selector and its labels, joined `on`."""
    for info, labels in infos:
        value = f"{value} * on ({on}) group_left ({labels}) max by ({on}, {labels}) ({info})"
    return value


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
