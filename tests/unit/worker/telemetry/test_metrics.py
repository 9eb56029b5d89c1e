"""worker.telemetry.metrics: the names and figures that Prometheus gets."""

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, ClassVar

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hrm.inference.prediction import EngineStatistics
from tests.support.stubs import DIGEST, Checkpoint, StubEvaluator
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE
from worker.telemetry.flow import Flow
from worker.telemetry.health import Readiness
from worker.telemetry.labels import ErrorKind, Reload, Request, State
from worker.telemetry.metrics import Metrics

NAMES = {
    "evaluations",
    "failures",
    "token_confusions",
    "prompt_matches",
    "text_checks",
    "truncated",
    "unread_words",
    "rejected",
    "taken",
    "settled",
    "returned",
    "in_hand",
    "restored",
    "task_messages",
    "redis_request_seconds",
    "duplicates",
    "errors",
    "q_halt_correct",
    "token_accuracy",
    "edit_similarity",
    "act_steps",
    "queue_seconds",
    "convert_seconds",
    "inference_seconds",
    "end_to_end_seconds",
    "tokens",
    "q_halt_probability",
    "engine_slots",
    "engine_waiting",
    "engine_steps",
    "engine_occupied_slots",
    "engine_refills",
    "engine_slot_reductions",
    "engine_busy_seconds",
    "engine_stalled_seconds",
    "prediction_cache",
    "reloads",
    "self_test_failures",
    "self_test_solved_ratio",
    "ready",
    "state",
    "build_info",
    "checkpoint_info",
    "checkpoint_loaded_timestamp_seconds",
    "checkpoint_trained_timestamp_seconds",
    "checkpoint_has_baseline",
    "checkpoint_baseline_solved_ratio",
    "checkpoint_training_token_ratio",
    "device_info",
    "engine_info",
    "device_memory_bytes",
}


def watched(evaluator: StubEvaluator | None = None, *, cached: bool = True) -> Metrics:
    metrics = Metrics()
    metrics.watch_engine(
        evaluator or StubEvaluator(slots=4),
        memory=lambda: {"allocated": 5},
        stalled_seconds=lambda: 7.5,
        cached=cached,
    )
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def test_every_metric_of_the_design_is_there() -> None:
    metrics = watched()
    metrics.self_tested(7, 8, passed=True)
    metrics.watch_readiness(Readiness())
    metrics.watch_hand(lambda: {LIVE_QUEUE: Flow(3, 1, 1, 1)})
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    names = {family.name for family in families}
    ours = {name.removeprefix("sqe_hrm_") for name in names if name.startswith("sqe_hrm_")}
    assert ours == NAMES
    assert {"python_info", "process_resident_memory_bytes"} <= names


@pytest.mark.parametrize(
    ("prepare", "state"),
    [
        (lambda _: None, State.STARTING),
        (lambda readiness: readiness.loaded(), State.SERVING),
        (lambda readiness: readiness.watch_activity(lambda: State.TESTING), State.STARTING),
        (lambda readiness: (readiness.loaded(), readiness.stopping()), State.STOPPING),
    ],
)
def test_a_worker_is_in_one_state(prepare: Callable[[Readiness], object], state: State) -> None:
    readiness = Readiness()
    metrics = Metrics()
    metrics.watch_readiness(readiness)
    prepare(readiness)
    values = samples(metrics)
    assert {each: values["sqe_hrm_state", each] for each in State} == {
        each: each is state for each in State
    }


def test_a_worker_is_ready_as_its_page_says() -> None:
    readiness = Readiness()
    metrics = Metrics()
    metrics.watch_readiness(readiness)
    assert samples(metrics)["sqe_hrm_ready",] == 0
    readiness.loaded()
    readiness.broker_replied()
    assert samples(metrics)["sqe_hrm_ready",] == 1


def test_what_became_of_messages_is_of_one_moment() -> None:
    metrics = Metrics()
    flows = iter([{LIVE_QUEUE: Flow(9, 4, 2, 3)}])
    metrics.watch_hand(lambda: next(flows))
    values = samples(metrics)
    names = ("taken_total", "settled_total", "returned_total", "in_hand")
    assert [values[f"sqe_hrm_{name}", LIVE_QUEUE] for name in names] == [9, 4, 2, 3]


def test_tasks_requests_and_what_was_restored_are_counted() -> None:
    metrics = Metrics()
    before = samples(metrics)
    for messages in (1, 1, 256):
        metrics.task(messages)
    metrics.redis_request(Request.RENEW, 0.25)
    metrics.restored(BACKFILL_QUEUE, 7)
    added = {key: value - before[key] for key, value in samples(metrics).items() if key in before}
    assert before.keys() == samples(metrics).keys()
    assert added["sqe_hrm_task_messages_bucket", "1.0"] == 2
    assert added["sqe_hrm_task_messages_sum",] == 258
    assert added["sqe_hrm_redis_request_seconds_sum", "renew"] == 0.25
    assert added["sqe_hrm_restored_total", BACKFILL_QUEUE] == 7


def test_versions_are_read_without_torch() -> None:
    (key,) = (key for key in samples(Metrics()) if key[0] == "sqe_hrm_build_info")
    assert {platform.python_version(), metadata.version("torch")} < set(key)


def test_a_checkpoint_shows_since_when_it_serves_and_when_it_was_trained() -> None:
    evaluator = StubEvaluator()
    metrics = watched(evaluator)
    before = time.time()
    metrics.serves(evaluator)
    values = samples(metrics)
    loaded = values["sqe_hrm_checkpoint_loaded_timestamp_seconds", "stub"]
    assert before <= loaded <= time.time()
    trained = values["sqe_hrm_checkpoint_trained_timestamp_seconds", "stub"]
    assert datetime.fromtimestamp(trained, UTC) == datetime(2026, 11, 22, tzinfo=UTC)
    evaluator.trained_on = None
    assert ("sqe_hrm_checkpoint_trained_timestamp_seconds", "stub") not in samples(metrics)


def test_state_is_read_when_it_is_asked_for() -> None:
    values = samples(watched())
    assert values["sqe_hrm_engine_slots", "busy"] == 0
    assert values["sqe_hrm_engine_slots", "free"] == 4
    assert values["sqe_hrm_checkpoint_info", DIGEST, "stub"] == 1
    assert values["sqe_hrm_device_info", "cpu"] == 1
    assert values["sqe_hrm_engine_info", "float32", "max_steps"] == 1
    assert values["sqe_hrm_engine_stalled_seconds",] == 7.5
    assert values["sqe_hrm_device_memory_bytes", "allocated", "cpu"] == 5


def test_what_the_engine_did_is_read_when_it_is_asked_for() -> None:
    evaluator = StubEvaluator(slots=4)
    metrics = watched(evaluator)
    names = ("steps", "occupied_slots", "refills", "slot_reductions")
    before = samples(metrics)
    assert [before[f"sqe_hrm_engine_{name}_total",] for name in names] == [0, 0, 0, 0]
    assert before["sqe_hrm_prediction_cache_total", "hit"] == 0
    evaluator.statistics = EngineStatistics(
        slots=4,
        busy_slots=3,
        waiting=6,
        steps=10,
        occupied=35,
        busy_seconds=1.5,
        refills=3,
        slot_reductions=1,
        cache_hits=7,
        cache_misses=5,
    )
    after = samples(metrics)
    assert (after["sqe_hrm_engine_slots", "busy"], after["sqe_hrm_engine_slots", "free"]) == (3, 1)
    assert [after[f"sqe_hrm_engine_{name}_total",] for name in names] == [10, 35, 3, 1]
    assert after["sqe_hrm_engine_waiting",] == 6
    assert after["sqe_hrm_engine_busy_seconds_total",] == 1.5
    assert after["sqe_hrm_prediction_cache_total", "hit"] == 7
    assert after["sqe_hrm_prediction_cache_total", "miss"] == 5


def test_while_slots_in_reserve_are_used_more_are_busy_than_there_are_and_none_is_free() -> None:
    evaluator = StubEvaluator()
    evaluator.statistics = EngineStatistics(slots=4, busy_slots=5)
    values = samples(watched(evaluator))
    busy, free = (values["sqe_hrm_engine_slots", state] for state in ("busy", "free"))
    assert (busy, free) == (5, 0)


def test_without_a_cache_there_is_no_figure_of_one() -> None:
    assert not [key for key in samples(watched(cached=False)) if "prediction_cache" in key[0]]


def test_a_scrape_takes_one_snapshot_of_the_engine() -> None:
    class Counting(StubEvaluator):
        """Counts how often its statistics are read."""

        reads = 0

        @property
        def statistics(self) -> EngineStatistics:
            self.reads += 1
            return EngineStatistics(slots=4, busy_slots=self.reads)

        @statistics.setter
        def statistics(self, _: EngineStatistics) -> None: ...

    evaluator = Counting()
    values = samples(watched(evaluator))
    assert evaluator.reads == 1
    assert (values["sqe_hrm_engine_slots", "busy"], values["sqe_hrm_engine_slots", "free"]) == (
        1,
        3,
    )


def test_another_checkpoint_shows_at_the_next_scrape() -> None:
    evaluator = StubEvaluator()
    metrics = watched(evaluator)
    evaluator.checkpoint = Checkpoint("next", "5678")
    values = samples(metrics)
    assert values["sqe_hrm_checkpoint_info", "5678", "next"] == 1
    assert ("sqe_hrm_checkpoint_info", DIGEST, "stub") not in values


def test_a_self_test_shows_its_share_from_the_first_on() -> None:
    metrics = watched()
    assert ("sqe_hrm_self_test_solved_ratio",) not in samples(metrics)
    metrics.self_tested(6, 8, passed=True)
    metrics.self_tested(2, 8, passed=False)
    values = samples(metrics)
    assert values["sqe_hrm_self_test_solved_ratio",] == 0.25
    assert values["sqe_hrm_self_test_failures_total",] == 1


def test_a_checkpoint_shows_what_its_live_figures_are_compared_with() -> None:
    evaluator = StubEvaluator()
    metrics = watched(evaluator)
    values = samples(metrics)
    bounds = {"low": 0.956, "rate": 1.0, "high": 1.0}
    for bound, value in bounds.items():
        key = ("sqe_hrm_checkpoint_baseline_solved_ratio", *sorted((bound, "stub")))
        assert values[key] == value
    assert values["sqe_hrm_checkpoint_training_token_ratio", "stub", "test"] == 0.25


def test_without_recorded_figures_there_is_nothing_to_compare_with() -> None:
    class Unmeasured(StubEvaluator):
        recorded_rate: Any = None
        training_tokens: ClassVar[dict[str, float]] = {}

    values = samples(watched(Unmeasured()))
    assert values["sqe_hrm_checkpoint_has_baseline", "stub"] == 0
    assert samples(watched())["sqe_hrm_checkpoint_has_baseline", "stub"] == 1
    names = {name for name, *_ in values}
    assert not [name for name in names if "baseline_solved" in name or "training_token" in name]


def test_errors_and_reasons_show_before_the_first_one() -> None:
    values = samples(Metrics())
    assert all(values["sqe_hrm_errors_total", kind] == 0 for kind in ErrorKind)
    assert values["sqe_hrm_rejected_total", "not_json"] == 0
    assert all(values["sqe_hrm_reloads_total", result] == 0 for result in Reload)
