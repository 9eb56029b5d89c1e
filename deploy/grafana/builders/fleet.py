"""The dashboard of the workers: which one, on which device, with which checkpoint, and Redis."""

from grafana_foundation_sdk.models import dashboard

from deploy.grafana.builders import board
from deploy.grafana.builders.board import Section
from deploy.grafana.builders.panels import (
    BYTES,
    COUNT,
    GREEN,
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
    states_panel,
    table_panel,
)
from deploy.grafana.builders.queries import (
    JOB,
    RATE,
    SOLVED,
    WINDOW,
    increase,
    joined,
    largest,
    mean,
    quantile,
    rate,
    select,
    share,
    total,
)

INSTANCE = 'instance=~"$instance"'
DEVICE = 'device=~"$device"'
CHOSEN = (INSTANCE, DEVICE)

_WORKER = ("instance", "device", "process")
"""Labels of one worker. Those of one address differ in `device` and `process`."""

WORKER = ", ".join(_WORKER)

_BUILD = ("state", "halting", "dtype", "version", "python", "torch")
"""Labels of the worker's own figures that say what it is."""

NAME = "{{instance}} {{device}} {{process}}"

KNOWN_LIVE = ('lane="live"', 'known="true"')

VISIBILITY_SECONDS = 300
"""Time after which workers put back what nobody renewed: the default of SQE_VISIBILITY_TIMEOUT."""

MEMORY_SHARE = 0.8
"""Share of its memory from which on Redis raises an alert."""


def build() -> dashboard.Dashboard:
    """Build the dashboard."""
    return board.build(
        "Fleet",
        "Which worker, on which device, with which checkpoint? What each takes and settles, its "
        "engine, where time goes, what it uses; and Redis, which all share.",
        [board.instance(), board.device(), board.window()],
        [_now(), _workers(), _engine(), _times(), _models(), _machines(), _redis()],
    )


def _per_worker(metric: str, *matchers: str) -> str:
    return rate(metric, *CHOSEN, *matchers, by=WORKER)


def _states(metric: str, *matchers: str, by: str = WORKER) -> str:
    return total(metric, *CHOSEN, *matchers, by=by)


def _unaccounted() -> str:
    """Messages that a worker took, and that it neither settled, nor returned, nor has."""
    parts = ("taken_total", "settled_total", "returned_total", "in_hand")
    return " - ".join(_states(part) for part in parts)


def _now() -> Section:
    used, limit = largest("redis_memory_used_bytes"), largest("redis_memory_max_bytes")
    return Section(
        "Now",
        [
            stat_panel(
                Text("Ready", "Workers that take messages now, of those that answer.", "none"),
                [
                    Query(_states("ready", by=""), "ready"),
                    Query(f"count({select('ready', *CHOSEN)})", "answer"),
                ],
                unit=COUNT,
                steps=((None, RED), (1, GREEN)),
                width=4,
            ),
            stat_panel(
                Text(
                    "Errors",
                    "Errors of workers, in the time that figures are averaged over.",
                    "no worker answers",
                ),
                [Query(increase("errors_total", *CHOSEN), "Errors")],
                unit=COUNT,
                steps=((None, GREEN), (0.5, ORANGE), (10, RED)),
                width=4,
            ),
            stat_panel(
                Text(
                    "Unaccounted",
                    "Messages that were taken and neither settled nor returned, and that no worker "
                    "has. Anything but 0 is a fault.",
                    "no worker answers",
                ),
                [Query(f"sum({_unaccounted()})", "Unaccounted")],
                unit=COUNT,
                steps=((None, RED), (0, GREEN), (1, RED)),
                width=4,
            ),
            stat_panel(
                Text(
                    "Started again",
                    "Workers that ended and were started again by the command above them, in the "
                    "time that figures are averaged over.",
                    "no address with several workers",
                ),
                [Query(increase("worker_restarts_total", *CHOSEN), "Started again")],
                unit=COUNT,
                steps=((None, GREEN), (0.5, ORANGE), (5, RED)),
                width=4,
            ),
            stat_panel(
                Text("Redis", "Whether Redis answers the monitor.", "no monitor"),
                [Query(f"min({select('redis_up')})", "Redis")],
                unit=COUNT,
                steps=((None, RED), (1, GREEN)),
                width=4,
                names={"0": ("no answer", RED), "1": ("answers", GREEN)},
            ),
            stat_panel(
                Text(
                    "Redis memory",
                    "Share of its limit. At the limit agents cannot enqueue.",
                    "no monitor, or no limit",
                ),
                [Query(share(used, limit), "Redis memory")],
                unit=SHARE,
                steps=((None, GREEN), (0.6, ORANGE), (MEMORY_SHARE, RED)),
                width=4,
            ),
        ],
    )


def _workers() -> Section:
    infos = [
        (f"{select('state', *CHOSEN)} == 1", "state"),
        (select("engine_info", *CHOSEN), "halting, dtype"),
        (select("build_info", *CHOSEN), "version, python, torch"),
    ]
    ready = largest("ready", *CHOSEN, by=WORKER)
    # The monitor is a process, too.
    memory, started = (
        f"{_process(metric)} and on ({WORKER}) {ready}"
        for metric in ("resident_memory_bytes", "start_time_seconds")
    )
    return Section(
        "Workers",
        [
            table_panel(
                Text("Workers", "What each is, and what it does.", "no worker answers"),
                {label: label for label in (*_WORKER, *_BUILD)},
                [
                    Column("ready", joined(ready, infos, WORKER), names=_YES_NO),
                    Column("settled", _per_worker("settled_total"), PER_SECOND, decimals=1),
                    Column("in hand", _states("in_hand")),
                    Column("busy", _per_worker("engine_busy_seconds_total"), SHARE),
                    Column("memory", memory, BYTES),
                    Column("up for", f"time() - ({started})", SECONDS),
                ],
                width=24,
                height=6,
                sort_by="settled",
            ),
            states_panel(
                Text("Ready over time", "Whether each worker took messages."),
                [Query(largest("ready", *CHOSEN, by=WORKER), NAME)],
                names={"0": ("not ready", RED), "1": ("ready", GREEN)},
                width=8,
            ),
            lines_panel(
                Text("States", "Workers in each state."),
                [Query(f"{_states('state', by='state')} > 0", "{{state}}")],
                unit=COUNT,
                width=8,
                look=Lines(low=0, stacked=True),
            ),
            lines_panel(
                Text(
                    "Workers of one address",
                    "Workers that a command with --devices runs, and those that answer it.",
                    "no address with several workers",
                ),
                [
                    Query(_states("worker_up", by="instance"), "answer, {{instance}}"),
                    Query(
                        f"count by (instance) ({select('worker_up', *CHOSEN)})",
                        "run, {{instance}}",
                    ),
                ],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text("Settled", "Messages a second that were answered, by worker."),
                [Query(_per_worker("settled_total"), NAME)],
                unit=PER_SECOND,
                width=8,
            ),
            lines_panel(
                Text(
                    "Taken, settled, returned",
                    "Messages a second, of all workers. Restored ones were put back because "
                    "another worker left them; duplicates were answered again and not counted.",
                ),
                [
                    Query(rate("taken_total", *CHOSEN), "taken"),
                    Query(rate("settled_total", *CHOSEN), "settled"),
                    Query(rate("returned_total", *CHOSEN), "returned"),
                    Query(rate("restored_total", *CHOSEN), "restored"),
                    Query(rate("duplicates_total", *CHOSEN), "duplicates"),
                    Query(rate("rejected_total", *CHOSEN), "refused"),
                ],
                unit=PER_SECOND,
                width=8,
            ),
            lines_panel(
                Text("In hand", "Messages that each worker has taken and not settled."),
                [Query(_states("in_hand"), NAME)],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text("Errors", "Errors of workers a second, by kind."),
                [Query(rate("errors_total", *CHOSEN, by="kind"), "{{kind}}")],
                unit=PER_SECOND,
                width=8,
            ),
            lines_panel(
                Text(
                    "Unlike the others",
                    "Known live messages that each worker solves. If one worker differs from the "
                    "others, suspect that worker and not the agents.",
                ),
                [
                    Query(
                        share(
                            increase("evaluations_total", *CHOSEN, *KNOWN_LIVE, SOLVED, by=WORKER),
                            increase("evaluations_total", *CHOSEN, *KNOWN_LIVE, by=WORKER),
                        ),
                        NAME,
                    )
                ],
                unit=SHARE,
                width=8,
                look=Lines(low=0.9, high=1),
            ),
            lines_panel(
                Text("Messages of a task", "Mean number: 1 for single ones, up to 256 in batches."),
                [Query(mean("task_messages", *CHOSEN, window=WINDOW), "messages")],
                unit=COUNT,
                width=8,
            ),
        ],
    )


_YES_NO = {"0": ("no", RED), "1": ("yes", GREEN)}


def _process(metric: str) -> str:
    return f"max by ({WORKER}) (process_{metric}{{{JOB}, {INSTANCE}, {DEVICE}}})"


def _engine() -> Section:
    busy_slots = _states("engine_slots", 'state="busy"')
    steps = _per_worker("engine_steps_total")
    looked_up = "prediction_cache_total"
    return Section(
        "Engine",
        [
            lines_panel(
                Text(
                    "Busy",
                    "Share of the time in which a step is under way. Near 100 %, more workers are "
                    "needed; if messages wait and it is low, something else holds them up.",
                ),
                [Query(_per_worker("engine_busy_seconds_total"), NAME)],
                unit=SHARE,
                width=8,
                look=Lines(low=0, high=1),
            ),
            lines_panel(
                Text("Slots in use", "Share of each engine's places that hold a message."),
                [Query(share(busy_slots, _states("engine_slots")), NAME)],
                unit=SHARE,
                width=8,
                look=Lines(low=0, high=1),
            ),
            lines_panel(
                Text(
                    "Waiting for a slot",
                    "Messages that a worker has taken and its engine has not started.",
                ),
                [Query(_states("engine_waiting"), NAME)],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text("Steps", "ACT steps a second; each computes all slots that take part."),
                [Query(steps, NAME)],
                unit=PER_SECOND,
                width=8,
            ),
            lines_panel(
                Text(
                    "Slots in a step",
                    "Mean number of slots that take part in a step; and messages a second that "
                    "took a slot while others were at work, without waiting for a batch to end.",
                ),
                [
                    Query(
                        share(_per_worker("engine_occupied_slots_total"), steps), f"slots, {NAME}"
                    ),
                    Query(_per_worker("engine_refills_total"), f"refills, {NAME}"),
                ],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text(
                    "Cache hits",
                    "Share of the predictions that were answered from an equal one before.",
                    "nothing was looked up, or there is no cache",
                ),
                [
                    Query(
                        share(_per_worker(looked_up, 'result="hit"'), _per_worker(looked_up)), NAME
                    )
                ],
                unit=SHARE,
                width=8,
                look=Lines(low=0, high=1),
            ),
            lines_panel(
                Text("ACT steps of a message", "Steps until it halted: mean and 95th percentile."),
                [
                    Query(mean("act_steps", *CHOSEN, window=WINDOW), "mean"),
                    Query(quantile(0.95, "act_steps", *CHOSEN), "p95"),
                ],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text(
                    "Stalled",
                    "Time since an engine with work last finished a step. Beyond 30 s the alert "
                    "SQEHRMEngineStalled fires.",
                ),
                [Query(largest("engine_stalled_seconds", *CHOSEN, by=WORKER), NAME)],
                unit=SECONDS,
                width=8,
                look=Lines(low=0, limit=30),
            ),
            lines_panel(
                Text(
                    "Slots given up",
                    "How often a worker has gone on with fewer slots because its device's memory "
                    "ran short. It gets them back only by a restart.",
                ),
                [Query(_states("engine_slot_reductions_total"), NAME)],
                unit=COUNT,
                width=8,
            ),
        ],
    )


def _times() -> Section:
    stages = {
        "queue": "queue_seconds",
        "engine": "inference_seconds",
        "from end to end": "end_to_end_seconds",
    }
    return Section(
        "Where time goes",
        [
            lines_panel(
                Text("By stage, p95", "Time in the queue, in the engine, and all of it, by queue."),
                [
                    *(
                        Query(
                            quantile(0.95, metric, *CHOSEN, by="queue"), f"{stage}, {{{{queue}}}}"
                        )
                        for stage, metric in stages.items()
                    ),
                    Query(quantile(0.95, "convert_seconds", *CHOSEN), "conversion"),
                ],
                unit=SECONDS,
                width=12,
                look=Lines(low=0, logarithmic=True),
            ),
            lines_panel(
                Text("Requests to Redis, p95", "As the workers see it, by what they ask."),
                [
                    Query(
                        quantile(0.95, "redis_request_seconds", *CHOSEN, by="request"),
                        "{{request}}",
                    )
                ],
                unit=SECONDS,
                width=12,
                look=Lines(low=0, logarithmic=True),
            ),
        ],
    )


def _models() -> Section:
    by = "instance, device, process, checkpoint"
    since = f"time() - {largest('checkpoint_loaded_timestamp_seconds', *CHOSEN, by=by)}"
    trained = f"time() - {largest('checkpoint_trained_timestamp_seconds', *CHOSEN, by=by)}"
    digests = [(select("checkpoint_info", *CHOSEN), "digest")]
    return Section(
        "Checkpoints",
        [
            table_panel(
                Text("Checkpoints", "What each worker serves, since when, and how old it is."),
                {label: label for label in (*_WORKER, "checkpoint", "digest")},
                [
                    Column("loaded before", joined(f"({since})", digests, by), SECONDS),
                    Column("trained before", joined(f"({trained})", digests, by), SECONDS),
                    Column(
                        "alerts can compare",
                        joined(largest("checkpoint_has_baseline", *CHOSEN, by=by), digests, by),
                        names=_YES_NO,
                    ),
                ],
                width=12,
                sort_by="loaded before",
            ),
            lines_panel(
                Text(
                    "Reloads",
                    "Requests for another checkpoint, by result, within the time averaged over.",
                ),
                [Query(increase("reloads_total", *CHOSEN, by="result"), "{{result}}")],
                unit=COUNT,
                width=6,
            ),
            lines_panel(
                Text(
                    "Self-tests",
                    "Share of the known pairs that the last self-test solved, and tests that "
                    "failed. Below half, the worker takes no messages.",
                    "no self-test",
                ),
                [
                    Query(largest("self_test_solved_ratio", *CHOSEN, by=WORKER), f"solved, {NAME}"),
                    Query(_states("self_test_failures_total"), f"failed, {NAME}"),
                ],
                unit=COUNT,
                width=6,
                look=Lines(low=0, high=1),
            ),
        ],
    )


def _machines() -> Section:
    seconds = f"process_cpu_seconds_total{{{JOB}, {INSTANCE}, {DEVICE}}}"
    cpu = f"sum by ({WORKER}) (rate({seconds}[{RATE}]))"
    kinds = f"{WORKER}, kind"
    return Section(
        "Devices and memory",
        [
            table_panel(
                Text("Devices", "The device that each worker computes on."),
                {label: label for label in _WORKER},
                [Column("workers", _states("device_info"))],
                width=6,
                sort_by="instance",
            ),
            lines_panel(
                Text("Memory of the process", "Resident memory of each worker."),
                [Query(_process("resident_memory_bytes"), NAME)],
                unit=BYTES,
                width=6,
            ),
            lines_panel(
                Text("CPU", "Cores that each worker uses."),
                [Query(cpu, NAME)],
                unit=COUNT,
                width=6,
            ),
            lines_panel(
                Text(
                    "Memory of the GPU",
                    "Memory of each worker's GPU by kind.",
                    "no worker on a GPU",
                ),
                [Query(_states("device_memory_bytes", by=kinds), f"{{{{kind}}}}, {NAME}")],
                unit=BYTES,
                width=6,
            ),
        ],
    )


def _redis() -> Section:
    return Section(
        "Redis",
        [
            lines_panel(
                Text("Memory", "What Redis uses, and its limit."),
                [
                    Query(largest("redis_memory_used_bytes"), "used"),
                    Query(f"{largest('redis_memory_max_bytes')} > 0", "limit"),
                ],
                unit=BYTES,
                width=8,
                look=Lines(low=0, dashed=("limit",)),
            ),
            lines_panel(
                Text(
                    "Stalest message in work",
                    "Time since the oldest renewal of a message that a worker has. Beyond the "
                    "visibility timeout its worker is gone, and nobody has put it back.",
                ),
                [Query(largest("unacked_stalest_seconds", by="queue"), "{{queue}}")],
                unit=SECONDS,
                width=8,
                look=Lines(low=0, limit=VISIBILITY_SECONDS),
            ),
            lines_panel(
                Text("Waiting and in work", "Messages of each queue, as the monitor counts them."),
                [Query(largest("queue_messages", by="queue, state"), "{{queue}}, {{state}}")],
                unit=COUNT,
                width=8,
                look=Lines(low=0, logarithmic=True),
            ),
        ],
    )
