"""The dashboard for the first look: whether agents answer as accepted, and whether all works."""

from grafana_foundation_sdk.models import dashboard

from deploy.grafana.builders import board
from deploy.grafana.builders.board import Section, link_to
from deploy.grafana.builders.panels import (
    COUNT,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    Column,
    Lines,
    Query,
    Text,
    lines_panel,
    stat_panel,
    table_panel,
)
from deploy.grafana.builders.queries import (
    CHECKPOINT,
    ENOUGH,
    FIRING,
    KNOWN,
    LIVE,
    LIVE_QUEUE,
    RATE,
    SOLVED,
    UNSOLVED,
    WINDOW,
    baseline,
    fleet_increase,
    increase,
    largest,
    quantile,
    rate,
    select,
    share,
    total,
    wilson,
)

OBJECTIVE_SECONDS = 2.0
"""Objective for live messages, from enqueued until the verdict. It is a limit of a bucket, so that
the share of messages within it is exact."""

OBJECTIVE_SHARE = 0.99
"""Share of live messages that should be within `OBJECTIVE_SECONDS`."""

OLD_SECONDS = 60
"""A live message that waits longer raises the alert SQEHRMOldestMessage."""

_WATCHED = (CHECKPOINT, LIVE, KNOWN)
"""Messages whose answers were accepted, from agents at work."""

TOO_FEW = "too few to tell"


def build() -> dashboard.Dashboard:
    """Build the dashboard."""
    return board.build(
        "Overview",
        "Do agents still answer as accepted; if not, which, in what, since when? "
        "Shares are of live messages whose prompts the checkpoint was trained on.",
        [board.checkpoint(), board.window()],
        [_now(), _changes(), _speed(), _firing()],
    )


def _counted(*matchers: str, by: str = "checkpoint") -> str:
    return increase("evaluations_total", *_WATCHED, *matchers, by=by)


def _of_agents(*matchers: str, by: str = "agent") -> str:
    return fleet_increase("agent_evaluations_total", KNOWN, *matchers, by=by)


def _now() -> Section:
    known, solved = _counted(), _counted(SOLVED)
    below = (
        f"({known} >= bool {ENOUGH})"
        f" * (1 + ({wilson(solved, known, 'high')} < bool {baseline('low')}))"
    )
    canaries = fleet_increase("canary_total", 'outcome=~"solved|unsolved|refused|late"')
    return Section(
        "Now",
        [
            stat_panel(
                Text(
                    "Against its own measurement",
                    "Whether a checkpoint solves as many known messages as when it was measured: "
                    "the upper end of the 95 % interval against the lower end of the measured one. "
                    f"Below {ENOUGH} messages, nobody can tell.",
                    "no messages, or no measured rate",
                ),
                [Query(below, "{{checkpoint}}")],
                unit=COUNT,
                steps=((None, GREY), (1, GREEN), (2, RED)),
                width=6,
                names={
                    "0": (TOO_FEW, GREY),
                    "1": ("as measured", GREEN),
                    "2": ("below", RED),
                },
                link=link_to("Failures", "Failures"),
            ),
            stat_panel(
                Text(
                    "Known messages solved",
                    "Share of known live messages with every target token predicted correctly, and "
                    "their number. Colours are rough; the panel before has the exact comparison.",
                    TOO_FEW,
                ),
                [
                    Query(
                        share(_counted(SOLVED, by=""), _counted(by=""), at_least=ENOUGH), "solved"
                    ),
                    Query(_counted(by=""), "messages"),
                ],
                unit=SHARE,
                steps=((None, RED), (0.9, ORANGE), (0.95, GREEN)),
                width=6,
                link=link_to("Failures", "Failures"),
            ),
            stat_panel(
                Text(
                    "Canaries solved",
                    "Messages with a known answer, sent through the live queue by the monitor. If "
                    "they fail, a worker is broken; if only agents' messages do, an agent changed.",
                    "no canary in this time",
                ),
                [
                    Query(share(fleet_increase("canary_total", SOLVED), canaries), "solved"),
                    Query(canaries, "canaries"),
                ],
                unit=SHARE,
                steps=((None, RED), (0.95, ORANGE), (1, GREEN)),
                width=3,
            ),
            stat_panel(
                Text(
                    "Oldest live message",
                    "How long the message that is next has waited. The monitor says so, also "
                    "while no worker is up.",
                    "no monitor, or its sender gives no time",
                ),
                [Query(largest("queue_oldest_seconds", LIVE_QUEUE), "waits")],
                unit=SECONDS,
                steps=((None, GREEN), (OLD_SECONDS / 4, ORANGE), (OLD_SECONDS, RED)),
                width=3,
                link=link_to("Fleet", "Workers"),
            ),
            stat_panel(
                Text("Workers ready", "Workers that take messages now.", "no worker answers"),
                [Query(total("ready"), "ready"), Query(f"count({select('ready')})", "answer")],
                unit=COUNT,
                steps=((None, RED), (1, GREEN)),
                width=3,
                link=link_to("Fleet", "Workers"),
            ),
            stat_panel(
                Text(
                    "Alerts", "Alerts that fire now; they are named below.", "no rules are loaded"
                ),
                [Query(f"count({FIRING}) or vector(0)", "fire")],
                unit=COUNT,
                steps=((None, GREEN), (1, RED)),
                width=3,
                link=link_to("Failures", "Failures"),
            ),
        ],
    )


def _changes() -> Section:
    known, solved = _counted(by=""), _counted(SOLVED, by="")
    return Section(
        "What changed, where, since when",
        [
            lines_panel(
                Text(
                    "Known messages solved, with 95 % interval",
                    "A change is real if the whole interval is below the measured rates: a fall of "
                    "`at most` below `measured, low` raises the alert.",
                ),
                [
                    Query(share(solved, known), "solved"),
                    Query(wilson(solved, known, "high"), "at most"),
                    Query(wilson(solved, known, "low"), "at least"),
                    Query(baseline("rate"), "measured, {{checkpoint}}"),
                    Query(baseline("low"), "measured, low, {{checkpoint}}"),
                ],
                unit=SHARE,
                width=12,
                look=Lines(low=0.9, high=1, dashed=("measured",), band=("at most", "at least")),
            ),
            lines_panel(
                Text(
                    "Unsolved, by agent",
                    "Known live messages that the agent no longer answers as accepted; the ten "
                    "agents with the most. Counted once for the whole fleet and all checkpoints.",
                ),
                [Query(f"topk(10, {share(_of_agents(UNSOLVED), _of_agents())})", "{{agent}}")],
                unit=SHARE,
                width=12,
                link=link_to("Failures", "Failures of this agent", agent="${__field.labels.agent}"),
            ),
            table_panel(
                Text("Categories", "Known live messages by the category of their prompts."),
                {"category": "category"},
                _columns(_counted(by="category"), _counted(SOLVED, by="category")),
                width=12,
                sort_by="unsolved",
                link=link_to(
                    "Failures", "Failures in this category", category="${__data.fields.category}"
                ),
            ),
            table_panel(
                Text(
                    "Agents",
                    "Known live messages by agent, of all checkpoints. Agents beyond 100 are "
                    "`other`.",
                ),
                {"agent": "agent"},
                _columns(_of_agents(), _of_agents(SOLVED)),
                width=12,
                sort_by="unsolved",
                link=link_to("Failures", "Failures of this agent", agent="${__data.fields.agent}"),
            ),
            lines_panel(
                Text("Unsolved, by category", "Share of the known live messages of each category."),
                [
                    Query(
                        share(_counted(UNSOLVED, by="category"), _counted(by="category")),
                        "{{category}}",
                    )
                ],
                unit=SHARE,
                width=12,
            ),
            lines_panel(
                Text(
                    "Solved and unknown, by checkpoint",
                    "Known messages that are solved, and prompts that the checkpoint was not "
                    "trained on: these it cannot judge, and many of them mean that it is time to "
                    "train again.",
                ),
                [
                    Query(share(_counted(SOLVED), _counted()), "known solved, {{checkpoint}}"),
                    Query(_unknown(), "unknown, {{checkpoint}}"),
                ],
                unit=SHARE,
                width=12,
                look=Lines(low=0, high=1),
            ),
        ],
    )


def _columns(known: str, solved: str) -> list[Column]:
    """Columns of a table of shares: the share, the lower end of its interval, and the number."""
    return [
        Column("unsolved", f"1 - {share(solved, known)}", SHARE, _UNSOLVED_STEPS, decimals=1),
        Column("at least", f"1 - {wilson(solved, known, 'high')}", SHARE, decimals=1),
        Column("messages", f"{known} > 0", decimals=0),
        Column("enough", f"{known} >= bool {ENOUGH}", names=_ENOUGH_NAMES),
    ]


_ENOUGH_NAMES = {"0": (TOO_FEW, GREY), "1": ("yes", GREY)}


_UNSOLVED_STEPS = ((None, "transparent"), (0.05, ORANGE), (0.2, RED))


def _unknown() -> str:
    matchers = (CHECKPOINT, LIVE)
    unknown = increase("evaluations_total", *matchers, 'known="false"', by="checkpoint")
    return share(unknown, increase("evaluations_total", *matchers, by="checkpoint"))


def _speed() -> Section:
    within = rate(
        "end_to_end_seconds_bucket", LIVE_QUEUE, f'le="{OBJECTIVE_SECONDS}"', window=WINDOW
    )
    all_of_them = rate("end_to_end_seconds_count", LIVE_QUEUE, window=WINDOW)
    levels = {0.5: "p50", 0.95: "p95", 0.99: "p99"}
    return Section(
        "Fast enough?",
        [
            lines_panel(
                Text(
                    "Latency of live messages",
                    "From enqueued until the verdict. The dashed line is the objective, which "
                    "99 % of the messages should keep.",
                ),
                [
                    Query(quantile(level, "end_to_end_seconds", LIVE_QUEUE), name)
                    for level, name in levels.items()
                ],
                unit=SECONDS,
                width=10,
                look=Lines(
                    low=0, high=OBJECTIVE_SECONDS, logarithmic=True, limit=OBJECTIVE_SECONDS
                ),
            ),
            stat_panel(
                Text(
                    "Within the objective",
                    f"Share of live messages with a verdict within {OBJECTIVE_SECONDS:g} s.",
                    "no message",
                ),
                [Query(share(within, all_of_them), "within 2 s")],
                unit=SHARE,
                steps=((None, RED), (0.95, ORANGE), (OBJECTIVE_SHARE, GREEN)),
                width=4,
                height=HEIGHT,
            ),
            lines_panel(
                Text(
                    "Waiting and in work",
                    "Messages that are ready, and those that workers have: a backlog can hide in "
                    "either. The monitor counts them, also while no worker is up.",
                ),
                [Query(largest("queue_messages", by="queue, state"), "{{queue}}, {{state}}")],
                unit=COUNT,
                width=10,
                look=Lines(low=0, logarithmic=True),
            ),
            lines_panel(
                Text(
                    "Age of the oldest message",
                    "How long the next message of each queue has waited. A backfill may wait for "
                    "hours; a live message should not.",
                ),
                [Query(largest("queue_oldest_seconds", by="queue"), "{{queue}}")],
                unit=SECONDS,
                width=8,
                look=Lines(low=0, logarithmic=True, limit=OLD_SECONDS),
            ),
            lines_panel(
                Text("Evaluated", "Messages a second by their lane and outcome."),
                [
                    Query(
                        rate("evaluations_total", CHECKPOINT, by="lane, outcome", window=RATE),
                        "{{lane}}, {{outcome}}",
                    ),
                    Query(rate("rejected_total"), "dead letters"),
                ],
                unit=PER_SECOND,
                width=8,
                look=Lines(low=0, stacked=True),
            ),
            lines_panel(
                Text(
                    "Canaries",
                    "Seconds from sending a canary to its outcome: what an agent would see, "
                    "measured also while no agent sends anything.",
                ),
                [
                    Query(quantile(0.5, "canary_seconds"), "p50"),
                    Query(quantile(0.99, "canary_seconds"), "p99"),
                ],
                unit=SECONDS,
                width=8,
                look=Lines(low=0),
            ),
        ],
    )


def _firing() -> Section:
    labels = ("alertname", "severity", "agent", "category", "checkpoint", "instance", "queue")
    return Section(
        "Alerts",
        [
            table_panel(
                Text(
                    "Alerts that fire now",
                    "What to do for each is in deploy/RUNBOOK.md.",
                    "no alert fires",
                ),
                {label: label for label in labels},
                [Column("alerts", f"count by ({', '.join(labels)}) ({FIRING})")],
                width=24,
                height=6,
                sort_by="severity",
                link=link_to("Failures", "Failures"),
            )
        ],
    )
