"""The page of all metrics, `deploy/METRICS.md`, made of what the processes themselves serve.

`python -m worker.cli.metrics_page deploy/METRICS.md` writes it.

Every metric that can be there is shown once to a registry, and names, types, texts and the values
of labels are read from it. Knows the parts that have metrics; nothing of how they count.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client.metrics_core import Metric

from hrm.data.vocabulary import VOCABULARY_1
from hrm.inference.prediction import EngineStatistics
from schemas import Category, Difficulty, HaltedBy
from worker.broker.backlog import OTHER
from worker.broker.keys import QUEUES
from worker.delivery.hand import Hand
from worker.evaluator import Evaluator
from worker.fleet.members import Member
from worker.fleet.merge import merged
from worker.fleet.supervisor import State
from worker.monitor.figures import Figures
from worker.monitor.reading import STREAMS, Reading, Stream
from worker.process.devices import MEMORY_KINDS
from worker.telemetry.families import PREFIX
from worker.telemetry.health import Readiness
from worker.telemetry.labels import Lane
from worker.telemetry.metrics import Metrics
from worker.telemetry.verdicts import Evaluation

OPEN = {
    "agent": "the first 100 agents' ids, and `other`",
    "checkpoint": "name of the checkpoint that serves, and in counters of the one before",
    "device": "as `cpu` or `cuda:0`",
    "digest": "SHA-256 of weights and configuration",
    "dtype": "`float32`, `bfloat16` or `int8`",
    "halting": "`q` or `max_steps`",
    "predicted": "a token's name; `another hashed` for a hashed one in place of another",
    "process": "a worker's number among those of the same device, from 0",
    "python": "version",
    "target": "a token's name",
    "token": "a token's name; `hashed` for all hashed ones of conversion 2 together",
    "torch": "version, or `none`",
    "version": "this project's version",
}
"""The values of labels without a fixed list, in words."""

UNITS = {
    "_timestamp_seconds": "Unix time",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "share of 1",
    "_info": "1",
}
"""Units by the end of a metric's name."""

HEAD = f"""\
# Metrics

`python -m worker.cli.metrics_page deploy/METRICS.md` makes this page from the code. All names
begin with `{PREFIX}_`. [worker/README.md](../worker/README.md#metrics) says how to read them.
Beside them, each process serves `process_*` and `python_*` of prometheus_client.

No label holds a message's text or id. Its values come from a fixed list, or are names that the
operator chose; agents are at most 100. Counters start at 0 if their values are fixed. There are no
`_created` series.
"""

FLEET = """\
With `--devices`, the process above several workers serves the metrics of all of them, with the
labels `device` and `process`, and:
"""

WITHOUT_REDIS = """\
While Redis does not answer, all but `redis_up` and those of canaries are absent.
"""

BUCKETS = """\
A quantile is exact only at a bucket's limit, so an objective should be one.
"""


def page() -> str:
    """Build the page."""
    worker, monitor = _own(_worker()), _own(_monitor())
    fleet = _own(merged(lambda: [State(Member("cpu", 0), None, None, 0)]).collect())
    names = [f"| `{name}` | {text} |" for name, text in OPEN.items()]
    parts = [
        _paragraphs(HEAD),
        "## Workers",
        _table(worker),
        _paragraphs(FLEET),
        _table(fleet),
        "## The monitor",
        _paragraphs(WITHOUT_REDIS),
        _table(monitor),
        "## Labels without a list",
        "\n".join(["| label | value |", "| --- | --- |", *names]),
        "## Buckets",
        _paragraphs(BUCKETS),
        "\n".join(_buckets([*worker, *monitor])),
    ]
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph."""
    return "\n\n".join(" ".join(part.splitlines()) for part in text.strip().split("\n\n"))


def _worker() -> Iterator[Metric]:
    """The metrics of a worker that has everything."""
    metrics, evaluator = Metrics(), _evaluator()
    metrics.watch_readiness(Readiness())
    metrics.watch_hand(Hand(1).flows)
    metrics.watch_engine(
        evaluator,
        memory=lambda: dict.fromkeys(MEMORY_KINDS, 0),
        stalled_seconds=lambda: 0.0,
        cached=True,
    )
    metrics.self_tested(8, 8, passed=True)
    metrics.serves(evaluator)
    canary: Any = SimpleNamespace(
        checkpoint=evaluator.checkpoint.name,
        solved=True,
        known=True,
        difficulty=Difficulty.EASY,
        category=Category.OTHER,
    )
    metrics.evaluated(Evaluation(canary, Lane.CANARY, {}, ()))
    yield from metrics.registry.collect()


def _evaluator() -> Evaluator:
    stands_in: Any = SimpleNamespace(
        checkpoint=SimpleNamespace(name="name", digest="digest"),
        recorded_rate=(0.9, 1.0, 1.0),
        trained_on=date.min.replace(year=2000),
        training_tokens=dict.fromkeys(VOCABULARY_1.token_names, 0.0),
        token_names=VOCABULARY_1.token_names,
        device="cpu",
        dtype="float32",
        halting=HaltedBy.MAX_STEPS,
        statistics=EngineStatistics(),
    )
    return cast("Evaluator", stands_in)


def _monitor() -> Iterator[Metric]:
    """The metrics of a monitor that could read everything."""
    reading = Reading(
        ready=dict.fromkeys(QUEUES, 0),
        oldest=dict.fromkeys(QUEUES, 0.0),
        unacked=dict.fromkeys((*QUEUES, OTHER), 0),
        stalest=dict.fromkeys(QUEUES, 0.0),
        streams={name: Stream() for name in STREAMS},
        memory_used=0,
        memory_max=0,
        agents={
            ("agent", category, known, "solved"): 0
            for category in Category
            for known in ("true", "false")
        },
        stream_bytes=dict.fromkeys(STREAMS, 0),
        left_out=0,
    )
    yield from Figures(lambda: reading).registry.collect()


def _table(families: Sequence[Metric]) -> str:
    lines = ["| metric | type | labels | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{_name(family)}` | {family.type} | {_labels(family)} | {_unit(family)} "
        f"| {_escaped(family.documentation)} |"
        for family in families
    ]
    return "\n".join(lines)


def _own(families: Iterable[Metric]) -> list[Metric]:
    own = [family for family in families if family.name.startswith(f"{PREFIX}_")]
    return sorted(own, key=lambda family: family.name)


def _name(family: Metric) -> str:
    name = family.name.removeprefix(f"{PREFIX}_")
    return f"{name}_total" if family.type == "counter" else name


def _labels(family: Metric) -> str:
    """Name the labels, each with its values."""
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                values.setdefault(label, {})[value] = None
    return "; ".join(_label(label, seen) for label, seen in values.items())


def _label(label: str, values: Iterable[str]) -> str:
    fixed = ", ".join(f"`{value}`" for value in values)
    return f"`{label}`" if label in OPEN else f"`{label}`: {fixed}"


def _unit(family: Metric) -> str:
    for end, unit in UNITS.items():
        if family.name.endswith(end):
            return unit
    text = family.documentation
    if ", of 1" in text:
        return "share of 1"
    return "0 or 1" if family.type == "gauge" and text.startswith("1 ") else "number"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _buckets(families: Sequence[Metric]) -> Iterator[str]:
    for family in families:
        limits = dict.fromkeys(
            f"{float(sample.labels['le']):g}"
            for sample in family.samples
            if sample.name.endswith("_bucket") and sample.labels["le"] != "+Inf"
        )
        if limits:
            yield f"- `{_name(family)}`: {', '.join(limits)}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
