"""worker.monitor.figures: the names and figures that Prometheus gets of the monitor."""

from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker.monitor.figures import CanaryOutcome, Figures
from worker.monitor.reading import Reading, Stream

README = Path(__file__).parents[4] / "worker" / "README.md"

READING = Reading(
    ready={"sqe.evaluate": 3},
    oldest={"sqe.evaluate": 1.5},
    unacked={"sqe.evaluate": 2},
    stalest={"sqe.evaluate": 0.5},
    streams={"failures": Stream(5, 7, 60.0)},
    stream_bytes={"failures": 9000},
    left_out=11,
    memory_used=100,
    memory_max=0,
    agents={("planner", "ci_cd", "true", "solved"): 4},
)

EXPECTED = {
    "canary_total": {("late",): 0, ("solved",): 0, ("unsolved",): 1}
    | {(name,): 0 for name in ("unknown", "unproven", "refused", "unsent")},
    "redis_up": {(): 1},
    "queue_messages": {("ready", "sqe.evaluate"): 3, ("sqe.evaluate", "unacked"): 2},
    "queue_oldest_seconds": {("sqe.evaluate",): 1.5},
    "unacked_stalest_seconds": {("sqe.evaluate",): 0.5},
    "stream_entries": {("failures",): 5},
    "stream_added_total": {("failures",): 7},
    "stream_oldest_seconds": {("failures",): 60},
    "stream_bytes": {("failures",): 9000},
    "failures_left_out_total": {(): 11},
    "redis_memory_used_bytes": {(): 100},
    "redis_memory_max_bytes": {(): 0},
    "agent_evaluations_total": {
        ("ci_cd", "planner", "solved", "true"): 4,
        ("ci_cd", "planner", "true", "unsolved"): 0,
    },
}


def samples(figures: Figures) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(figures.registry).decode()):
        for sample in family.samples:
            if sample.name.startswith("sqe_hrm_"):
                labels = tuple(sorted(sample.labels.values()))
                found.setdefault(sample.name.removeprefix("sqe_hrm_"), {})[labels] = sample.value
    return found


def test_the_latest_reading_and_the_canaries_show() -> None:
    figures = Figures(lambda: READING)
    figures.canary(CanaryOutcome.UNSOLVED, 0.3)
    found = samples(figures)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    others = {name for name in found if not name.startswith("canary_seconds_")} - EXPECTED.keys()
    assert not others
    assert found["canary_seconds_count"] == {(): 1}


def test_without_redis_only_that_and_the_canaries_show() -> None:
    found = samples(Figures(lambda: None))
    assert found["redis_up"] == {(): 0}
    assert {name for name in found if not name.startswith("canary")} == {"redis_up"}


def test_what_could_not_be_read_is_missing() -> None:
    found = samples(Figures(Reading))
    assert found["redis_up"] == {(): 1}
    assert "redis_memory_used_bytes" not in found
    assert "queue_messages" not in found
    assert "failures_left_out_total" not in found
