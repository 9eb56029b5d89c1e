"""worker.process.reload: what follows from a request to reload, and from a self-test."""

import gc
import logging
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hrm.checkpoint import CheckpointError, load_checkpoint
from hrm.evaluation.evaluator import Evaluator
from hrm.inference.config import Inference
from hrm.inference.prediction import EngineFailedError
from tests.support.networks import saved_for_messages
from tests.support.processes import DEADLINE, wait_for
from tests.support.stubs import STUB, Checkpoint, StubEvaluator, message
from worker.broker.keys import LIVE_QUEUE
from worker.delivery.hand import Hand
from worker.evaluator import Model, Named
from worker.process import reload
from worker.process.devices import Device
from worker.process.reload import Reloaded, Reloader, SelfTestError
from worker.telemetry.labels import Reload, State
from worker.telemetry.metrics import Metrics

NEXT = Checkpoint("next", "5678" * 16)


class World:
    """A reloader of stub evaluators."""

    def __init__(self) -> None:
        self.hand = Hand(4)
        self.metrics = Metrics()
        self.read: Callable[[], Named] = lambda: STUB
        self.records = "none"
        self.before_open: Callable[[], object] = lambda: None
        self.asked: list[str | None] = []
        self.opened: list[StubEvaluator] = []
        self.tested = (0, 0)
        self.broken: list[str] = []
        self.ends: queue.SimpleQueue[Reloaded] = queue.SimpleQueue()
        self.reloader = Reloader(self.model, Device("cpu", "cpu"), self.metrics)

    def model(self, checkpoint: str | None) -> Model:
        self.asked.append(checkpoint)
        found = self.read()

        def open_() -> StubEvaluator:
            self.before_open()
            self.opened.append(StubEvaluator(checkpoint=found))
            self.opened[-1].tested = self.tested
            return self.opened[-1]

        return Model(found.name, found.digest, self.records, open_)

    def start(self) -> None:
        self.swap = self.reloader.open()
        self.reloader.start(self.hand, self.broken.append)

    def reload(self, checkpoint: str | None = None) -> Reloaded:
        self.reloader.ask(checkpoint, self.ends.put)
        return self.ends.get(timeout=DEADLINE)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"sqe_hrm_{name}", labels)

    def reloads(self) -> dict[str, float | None]:
        return {str(each): self.value("reloads_total", result=each) for each in Reload}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(reload, "RELEASE_PAUSES", (0,))  # the world keeps what has left
    world = World()
    yield world
    world.reloader.stop(DEADLINE)


# Requests.


def test_another_checkpoint_takes_the_place_of_the_first(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.start()
    world.read = lambda: NEXT
    assert world.reload("next") == Reloaded(
        Reload.RELOADED, "next (567856785678)", before="stub (0123456789ab)"
    )
    assert world.asked == [None, "next"]
    assert world.swap.checkpoint == NEXT
    assert world.opened[0]._closed.is_set()
    assert world.reloads() == {"reloaded": 1, "already_serving": 0, "refused": 0}
    assert (
        "reloaded: next (567856785678) serves instead of stub (0123456789ab), after" in caplog.text
    )


def test_a_worker_says_while_it_reloads(world: World) -> None:
    world.start()
    seen = [world.reloader.activity()]
    world.read = lambda: NEXT
    world.before_open = lambda: seen.append(world.reloader.activity())
    world.reload()
    seen.append(world.reloader.activity())
    assert seen == [State.SERVING, State.RELOADING, State.SERVING]


def test_the_same_digest_opens_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.start()
    world.read = lambda: Checkpoint("under another name", STUB.digest)
    assert world.reload() == Reloaded(Reload.ALREADY_SERVING, "stub (0123456789ab)")
    assert len(world.opened) == 1
    assert world.reloads() == {"reloaded": 0, "already_serving": 1, "refused": 0}
    assert "already serving stub (0123456789ab)" in caplog.text


def test_the_same_digest_with_other_records_is_loaded(world: World) -> None:
    world.start()
    world.records = "figures"
    for result in (Reload.RELOADED, Reload.ALREADY_SERVING):
        assert world.reload().result is result
    assert world.opened[0]._closed.is_set()
    assert len(world.opened) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("next: gone: restore it"), "next: gone: restore it"),
        (RuntimeError("no room\non the device"), "unexpected RuntimeError: no room on the device"),
        (MemoryError(), "unexpected MemoryError: no message"),
    ],
)
@pytest.mark.parametrize("where", ["read", "before_open"])
def test_one_that_cannot_be_used_leaves_the_first_serving(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception, reason: str, where: str
) -> None:
    def fail() -> Named:
        raise error

    world.start()
    world.read = lambda: NEXT
    setattr(world, where, fail)
    assert world.reload() == Reloaded(Reload.REFUSED, "stub (0123456789ab)", reason=reason)
    assert world.swap.checkpoint == STUB
    assert not world.opened[0]._closed.is_set()
    assert world.reloads() == {"reloaded": 0, "already_serving": 0, "refused": 1}
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage() == f"reload refused, stub (0123456789ab) serves on: {reason}"
    assert record.exc_info is None
    # And it can still be replaced.
    world.read, world.before_open = lambda: NEXT, lambda: None
    assert world.reload().result is Reload.RELOADED


def test_one_that_fails_its_test_leaves_the_first_serving_and_is_closed(world: World) -> None:
    world.tested = (8, 8)
    world.start()
    assert world.value("self_test_failures_total") == 0
    world.read, world.tested = lambda: NEXT, (3, 8)
    end = world.reload()
    assert end.result is Reload.REFUSED
    assert end.reason is not None
    assert end.reason.startswith(
        "this worker gives wrong answers: 5 of 8 known pairs of next (567856785678) are not "
        "solved: is the device cpu sound, and float32 exact enough?"
    )
    assert world.swap.checkpoint == STUB
    assert world.opened[1]._closed.is_set()
    assert world.value("self_test_failures_total") == 1
    assert world.reloader.failure() is None


def test_signals_during_a_reload_are_one_more_reload(world: World) -> None:
    world.start()
    opening, go = threading.Event(), threading.Event()

    def wait() -> None:
        opening.set()
        assert go.wait(DEADLINE)

    world.read, world.before_open = lambda: NEXT, wait
    world.reloader.on_signal(signal.SIGHUP, None)
    assert opening.wait(DEADLINE)
    for _ in range(3):
        world.reloader.on_signal(signal.SIGHUP, None)
    go.set()
    assert world.reload("last").result is Reload.ALREADY_SERVING
    assert world.asked == [None, None, None, "last"]
    assert world.reloads() == {"reloaded": 1, "already_serving": 2, "refused": 0}


def test_a_signal_before_the_worker_is_ready_is_remembered(world: World) -> None:
    world.reloader.on_signal(signal.SIGHUP, None)
    world.start()
    wait_for(lambda: world.reloads()["already_serving"] == 1, "the request of before")


# Self-tests.


@pytest.mark.parametrize("solved", [4, 7, 8])
def test_a_worker_that_solves_half_of_its_known_pairs_starts(world: World, solved: int) -> None:
    world.tested = (solved, 8)
    world.start()
    assert world.value("self_test_failures_total") == 0


@pytest.mark.parametrize("solved", [0, 3])
def test_a_worker_that_solves_fewer_does_not_start(world: World, solved: int) -> None:
    world.tested = (solved, 8)
    with pytest.raises(SelfTestError, match=f"gives wrong answers: {8 - solved} of 8 known pairs"):
        world.reloader.open()
    assert world.opened[0]._closed.is_set()


def test_an_idle_worker_whose_answers_become_wrong_takes_nothing_until_they_are_right(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(reload, "SELF_TEST_SECONDS", 0.01)
    world.tested = (8, 8)
    world.start()
    assert world.hand.has_room([LIVE_QUEUE])
    world.opened[0].tested = (0, 8)
    wait_for(lambda: world.reloader.failure() is not None, "it is found")
    assert "8 of 8 known pairs of stub" in (world.reloader.failure() or "")
    wait_for(lambda: world.reloader.activity() is State.PAUSED, "it rests between two tests")
    wait_for(lambda: not world.hand.has_room([LIVE_QUEUE]), "nothing is taken")
    wait_for(lambda: (world.value("self_test_failures_total") or 0) > 2, "it is tested again")
    world.opened[0].tested = (8, 8)
    wait_for(lambda: world.reloader.failure() is None, "it is right again")
    wait_for(lambda: world.hand.has_room([LIVE_QUEUE]), "messages are taken again")
    assert [each.levelno for each in caplog.records] == [logging.ERROR, logging.INFO]


def test_a_good_checkpoint_ends_the_trouble_with_a_bad_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tested = (8, 8)
    with monkeypatch.context() as patch:
        patch.setattr(reload, "SELF_TEST_SECONDS", 0.01)
        world.start()
        world.opened[0].tested = (0, 8)
        wait_for(lambda: world.hand.is_paused, "it is found")
    world.read = lambda: NEXT
    assert world.reload().result is Reload.RELOADED
    assert world.reloader.failure() is None
    assert not world.hand.is_paused


def test_a_worker_with_a_message_in_hand_is_not_tested(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "SELF_TEST_SECONDS", 0.01)
    world.hand.add("tag", LIVE_QUEUE, 1, is_suspect=False)
    world.tested = (8, 8)
    world.start()
    world.opened[0].tested = (0, 8)
    for _ in range(3):  # time passes
        world.reload()
    assert world.value("self_test_failures_total") == 0
    world.hand.remove("tag")
    wait_for(lambda: world.value("self_test_failures_total") != 0, "tested")


def test_an_engine_that_fails_while_idle_ends_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "SELF_TEST_SECONDS", 0.01)

    def fail() -> tuple[int, int]:
        raise EngineFailedError("the device failed: CUDA error")

    world.start()
    monkeypatch.setattr(world.opened[0], "self_test", fail)
    wait_for(lambda: bool(world.broken), "told")
    assert world.broken[0] == "the device failed: CUDA error"


# Memory.


def test_what_left_only_after_a_search_for_cycles_is_freed_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the last message of an evaluator is stored at that moment."""

    class InACycle:
        def __init__(self) -> None:
            self.own = self

    search = gc.collect

    def collect() -> int:
        found = search()
        world.opened.clear()
        return found

    monkeypatch.setattr(gc, "collect", collect)
    world.start()
    network = InACycle()
    vars(world.opened[0])["network"] = network
    left = weakref.ref(network)
    del network
    world.read = lambda: NEXT
    world.reload()
    try:
        wait_for(lambda: left() is None, "freed")
    finally:
        gc.unfreeze()


def test_the_network_that_has_left_is_freed(tmp_path: Path) -> None:
    """Also if everything was kept out of the search for cycles, as in a worker."""
    networks: list[weakref.ref[object]] = []

    def read(checkpoint: str | None) -> Model:
        loaded = load_checkpoint(saved_for_messages(tmp_path / (checkpoint or "first")))

        def open_() -> Evaluator:
            engine = Inference(slots=2).engine([loaded], "cpu")
            networks.append(weakref.ref(engine.networks[0]))
            cached = Inference(slots=2, cached_predictions=10).cached(engine, loaded.config)
            return Evaluator(loaded, cached, device="cpu", worker="w")

        return Model(loaded.name, loaded.digest, loaded.records_digest(), open_)

    reloader = Reloader(read, Device("cpu", "cpu"), Metrics())
    swap = reloader.open()
    gc.freeze()
    try:
        ends: queue.SimpleQueue[Reloaded] = queue.SimpleQueue()
        reloader.start(Hand(2), lambda _: None)
        for name in ("second", "third"):
            before = swap.submit(message(name).model_dump_json())
            reloader.ask(name, ends.put)
            assert ends.get(timeout=DEADLINE).result is Reload.RELOADED
            before.result(DEADLINE)
            del before
        wait_for(lambda: [each() is None for each in networks] == [True, True, False], "freed")
    finally:
        gc.unfreeze()
        reloader.stop(DEADLINE)
        swap.close()
