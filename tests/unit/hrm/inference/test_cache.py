"""hrm.inference.cache: equal examples are answered once, and nothing else changes."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.evaluation.evaluator import Evaluator
from hrm.inference.cache import CachedPredictor
from hrm.inference.prediction import (
    EngineClosedError,
    EngineFullError,
    InferenceError,
    Prediction,
)
from hrm.model.batch import ExampleError
from hrm.model.config import HRMConfig
from schemas import HaltedBy, HRMExample, SQEMessage
from tests.support.evaluations import opened
from tests.support.examples import example
from tests.support.predictors import Asked, StubPredictor, prediction_of

CHECKPOINTS = Path(__file__).parents[4] / "checkpoints"
CONFIG = HRMConfig(seq_len=6, num_puzzle_identifiers=5)
TIMEOUT = 30


@pytest.fixture
def stub() -> StubPredictor:
    return StubPredictor()


@pytest.fixture
def cache(stub: StubPredictor) -> CachedPredictor:
    return CachedPredictor(stub, CONFIG, entries=2)


def counts(cache: CachedPredictor) -> tuple[int, int]:
    return cache.statistics.cache_hits, cache.statistics.cache_misses


def test_an_equal_example_is_answered_without_the_predictor(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    first = cache.submit(example(3, (0, 5, 11)))
    stub.asked[0].answer()
    again = cache.submit(example(3, (0, 5, 11), target=(0, 7, 11)))
    assert again.done()
    assert again is not first
    assert again.result() == first.result() == prediction_of(example(3, (0, 5, 11)), None)
    assert len(stub.asked) == 1
    assert counts(cache) == (1, 1)


def test_a_kept_prediction_comes_in_a_future_that_is_done(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    first = cache.submit(example(3, (0, 5, 11)))
    stub.asked[0].answer()
    again = cache.submit(example(3, (0, 5, 11)))
    called: list[Future[Prediction]] = []
    again.add_done_callback(called.append)
    assert called == [again]
    assert not again.cancel()
    assert not again.cancelled()
    assert not again.running()
    assert again.exception() is None
    assert again.result(0) == first.result()


def test_other_puzzles_inputs_and_steps_are_other_examples(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [
        cache.submit(example(0, (0, 5, 11))),
        cache.submit(example(1, (0, 5, 11))),
        cache.submit(example(0, (0, 6, 11))),
        cache.submit(example(0, (0, 5, 11)), max_steps=2),
    ]
    assert [asked.max_steps for asked in stub.asked] == [None, None, None, 2]
    for asked in stub.asked:
        asked.answer()
    assert len({(future.result().tokens, future.result().act_steps) for future in futures}) == 4
    assert cache.submit(example(0, (0, 5, 11)), max_steps=2).result().act_steps == 2
    assert counts(cache) == (1, 4)


def test_the_least_recently_used_prediction_is_dropped_first(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    for puzzle in (0, 1, 0, 2, 0):  # a cache of two: 1 goes for 2
        cache.submit(example(puzzle))
        if not stub.asked[-1].future.done():
            stub.asked[-1].answer()
    assert [asked.example.puzzle_id for asked in stub.asked] == [0, 1, 2]
    assert counts(cache) == (2, 3)
    cache.submit(example(1))
    assert [asked.example.puzzle_id for asked in stub.asked] == [0, 1, 2, 1]


def test_an_example_waits_for_an_equal_one_in_work(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [cache.submit(example()) for _ in range(3)]
    assert len(set(map(id, futures))) == 3
    assert not any(future.done() for future in futures)
    stub.asked[0].answer()
    assert {future.result().tokens for future in futures} == {(0, 11, 1000)}
    assert len(stub.asked) == 1
    assert counts(cache) == (2, 1)


@pytest.mark.parametrize("cancelled", [0, 1])
def test_cancelling_one_future_leaves_those_of_equal_examples_alone(
    stub: StubPredictor, cache: CachedPredictor, cancelled: int
) -> None:
    futures = [cache.submit(example()), cache.submit(example())]
    assert futures[cancelled].cancel()
    assert not stub.asked[0].future.cancelled()
    stub.asked[0].answer()
    assert futures[1 - cancelled].result().tokens == (0, 11, 1000)
    with pytest.raises(CancelledError):
        futures[cancelled].result()


def test_when_all_futures_are_cancelled_the_work_is_and_an_equal_example_starts_again(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    for future in [cache.submit(example()), cache.submit(example())]:
        assert future.cancel()
    assert stub.asked[0].future.cancelled()
    later = cache.submit(example())
    stub.asked[1].answer()
    assert later.result().tokens == (0, 11, 1000)


def test_a_caller_that_comes_during_a_cancellation_is_not_cancelled_with_it(
    stub: StubPredictor, cache: CachedPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = cache.submit(example())
    inner = stub.asked[0].future
    cancel, came = inner.cancel, []

    def late() -> bool:
        came.append(cache.submit(example()))
        return cancel()

    monkeypatch.setattr(inner, "cancel", late)
    assert future.cancel()
    assert inner.cancelled()
    stub.asked[1].answer()
    assert came[0].result().tokens == (0, 11, 1000)


def test_if_two_threads_submit_equal_examples_at_once_one_goes_on_for_both(
    stub: StubPredictor, cache: CachedPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, others = stub.submit, []

    def while_another_thread_does(
        of: HRMExample, *, max_steps: int | None, urgent: bool
    ) -> Future[Prediction]:
        monkeypatch.setattr(stub, "submit", submit)
        others.append(cache.submit(of))
        return submit(of, max_steps=max_steps, urgent=urgent)

    monkeypatch.setattr(stub, "submit", while_another_thread_does)
    future = cache.submit(example())
    assert [asked.future.cancelled() for asked in stub.asked] == [False, True]
    stub.asked[0].answer()
    assert future.result() == others[0].result() == prediction_of(example(), None)


def test_an_urgent_example_takes_the_place_of_an_equal_one_that_is_not(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [cache.submit(example(), urgent=urgent) for urgent in (False, False, True, True)]
    futures.append(cache.submit(example(), urgent=False))
    assert [asked.urgent for asked in stub.asked] == [False, True]
    assert [asked.future.cancelled() for asked in stub.asked] == [True, False]
    assert not any(future.done() for future in futures)
    stub.asked[1].answer()
    assert {future.result().tokens for future in futures} == {(0, 11, 1000)}
    assert counts(cache) == (3, 2)
    assert cache.submit(example()).done(), "it is kept"


def test_work_whose_place_an_urgent_example_took_answers_and_fails_nobody(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [cache.submit(example(), urgent=False)]
    stub.asked[0].future.set_running_or_notify_cancel()  # too late to cancel it
    futures.append(cache.submit(example()))
    stub.asked[0].future.set_exception(InferenceError("not finite"))
    assert not any(future.done() for future in futures)
    stub.asked[1].answer()
    assert [future.result().tokens for future in futures] == [(0, 11, 1000)] * 2


def test_cancelling_all_futures_cancels_the_work_that_took_the_place(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [cache.submit(example(), urgent=urgent) for urgent in (False, True)]
    assert all(future.cancel() for future in futures)
    assert stub.asked[1].future.cancelled()


def test_a_full_queue_of_urgent_examples_leaves_equal_work_as_it_is(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    waiting = cache.submit(example(), urgent=False)
    stub.full = True
    with pytest.raises(EngineFullError):
        cache.submit(example())
    stub.asked[0].answer()
    assert waiting.result().tokens == (0, 11, 1000)


def test_a_prediction_that_can_no_longer_be_cancelled_is_kept_for_later(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    future = cache.submit(example())
    stub.asked[0].future.set_running_or_notify_cancel()
    assert future.cancel()
    stub.asked[0].future.set_result(prediction_of(example(), None))
    assert cache.submit(example()).done()
    assert len(stub.asked) == 1


def test_a_failure_goes_to_all_waiters_and_is_not_kept(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    futures = [cache.submit(example()), cache.submit(example())]
    stub.asked[0].answer(InferenceError("not finite"))
    for future in futures:
        with pytest.raises(InferenceError, match="not finite"):
            future.result()
    again = cache.submit(example())
    stub.asked[1].answer()
    assert again.result().tokens == (0, 11, 1000)
    assert counts(cache) == (1, 2)


def test_a_target_that_is_too_long_is_refused_although_its_prediction_is_kept(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    cache.submit(example())
    stub.asked[0].answer()
    with pytest.raises(ExampleError):
        cache.submit(example(target=(0,) * 7))
    assert cache.submit(example(target=(0,) * 6)).done()
    assert counts(cache) == (1, 1)


def test_a_full_queue_keeps_out_only_new_examples(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    cache.submit(example(0))
    stub.asked[0].answer()
    working = cache.submit(example(1))
    stub.full = True
    assert cache.submit(example(0)).done()
    attached = cache.submit(example(1))
    with pytest.raises(EngineFullError):
        cache.submit(example(2))
    assert cache.wait_for_room()
    cache.submit(example(2))
    stub.asked[1].answer()
    assert attached.result() == working.result()
    assert counts(cache) == (2, 3)


def test_a_closed_cache_answers_nobody(stub: StubPredictor, cache: CachedPredictor) -> None:
    cache.submit(example(0))
    stub.asked[0].answer()
    waiting = [cache.submit(example(1)), cache.submit(example(1))]
    cache.close()
    assert stub.closed
    for future in waiting:
        with pytest.raises(EngineClosedError):
            future.result(TIMEOUT)
    for puzzle in (0, 1, 2):
        with pytest.raises(EngineClosedError):
            cache.submit(example(puzzle))


def test_a_callback_may_submit_again(stub: StubPredictor, cache: CachedPredictor) -> None:
    later: list[Future[Prediction]] = []
    for puzzle in (0, 0):
        cache.submit(example(puzzle)).add_done_callback(
            lambda _: later.extend([cache.submit(example(0)), cache.submit(example(1))])
        )
    stub.asked[0].answer()
    stub.asked[1].answer()
    assert [future.result().tokens[-1] for future in later] == [1000, 1001, 1000, 1001]


def test_everything_else_comes_from_the_predictor(
    stub: StubPredictor, cache: CachedPredictor
) -> None:
    assert (cache.halting, cache.max_steps) == (HaltedBy.Q, 4)
    assert cache.dtype is torch.bfloat16
    assert cache.statistics == stub.statistics


@given(
    entries=st.integers(1, 4),
    moves=st.lists(
        st.tuples(st.sampled_from(["submit", "answer", "fail", "cancel"]), st.integers(0, 5))
    ),
)
def test_whatever_happens_every_caller_gets_the_answer_to_its_own_example(
    entries: int, moves: list[tuple[str, int]]
) -> None:
    stub = StubPredictor()
    cache = CachedPredictor(stub, HRMConfig(num_puzzle_identifiers=6), entries=entries)
    futures: list[tuple[int, Future[Prediction]]] = []
    for move, number in moves:
        unanswered = [asked for asked in stub.asked if not asked.future.done()]
        if move == "submit":
            futures.append((number, cache.submit(example(number))))
        elif move == "cancel" and futures:
            futures[number % len(futures)][1].cancel()
        elif unanswered:
            error = InferenceError("not finite") if move == "fail" else None
            unanswered[number % len(unanswered)].answer(error)
        assert len(cache._kept) <= entries
        in_work = [asked.example.puzzle_id for asked in stub.asked if not asked.future.done()]
        assert len(in_work) == len(set(in_work)), "equal examples are never in work twice"
    for asked in stub.asked:
        if not asked.future.done():
            asked.answer()
    assert not cache._pending
    for puzzle, future in futures:
        assert future.done()
        if not future.cancelled() and future.exception() is None:
            assert future.result() == prediction_of(example(puzzle), None)
    submitted = sum(move == "submit" for move, _ in moves)
    assert sum(counts(cache)) == submitted
    assert counts(cache)[1] == len(stub.asked)


def test_threads_may_share_one() -> None:
    class Answering(StubPredictor):
        """A stub that answers in threads of its own."""

        def __init__(self, pool: ThreadPoolExecutor) -> None:
            super().__init__()
            self.pool = pool

        def submit(
            self, of: HRMExample, *, max_steps: int | None = None, urgent: bool = True
        ) -> Future[Prediction]:
            asked = Asked(of, max_steps, urgent=urgent)
            self.asked.append(asked)
            self.pool.submit(asked.answer)
            return asked.future

    threads, rounds = 8, 300
    start = threading.Barrier(threads)

    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(threads) as callers:
        stub = Answering(pool)
        cache = CachedPredictor(stub, HRMConfig(num_puzzle_identifiers=20), entries=10)

        def call(seed: int) -> int:
            draw = random.Random(seed)
            start.wait(TIMEOUT)
            cancelled = 0
            for _ in range(rounds):
                of = example(draw.randrange(20))
                future = cache.submit(of)
                if draw.random() < 0.2 and future.cancel():
                    cancelled += 1
                    continue
                assert future.result(TIMEOUT) == prediction_of(of, None)
            return cancelled

        assert sum(callers.map(call, range(threads))) > 0
    hits, misses = counts(cache)
    assert hits + misses == threads * rounds
    assert misses == len(stub.asked)
    assert hits > misses / 4
    assert len(cache._kept) <= 10
    assert not cache._pending


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    evaluator = opened(CHECKPOINTS / "sqe-demo", slots=4, max_steps=None, cached_predictions=100)
    yield evaluator
    evaluator.close()


def test_a_verdict_is_the_same_with_and_without_inference(evaluator: Evaluator) -> None:
    with (CHECKPOINTS / "sqe-demo" / "messages.jsonl").open("rb") as file:
        pairs = [json.loads(line) for line in islice(file, 8)]
    messages = [SQEMessage.create(agent_id="a", **pair).model_dump_json() for pair in pairs]
    first = [evaluator.submit(message) for message in messages]
    inferred = [pending.result(TIMEOUT).verdict for pending in first]
    again = [evaluator.submit(message) for message in messages]
    assert all(pending.done() for pending in again)
    kept = [pending.result(0).verdict for pending in again]
    differing = {"timings", "evaluated_at"}
    assert [verdict.model_dump(exclude=differing) for verdict in kept] == [
        verdict.model_dump(exclude=differing) for verdict in inferred
    ]
    assert all(verdict.solved for verdict in kept)
    assert all(verdict.timings.inference < 0.01 for verdict in kept)
    statistics = evaluator.statistics
    assert (statistics.cache_hits, statistics.cache_misses) == (8, 8)
    assert statistics.occupied == 8 * evaluator.max_steps
