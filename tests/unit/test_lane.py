"""Rows of fixed sizes, captured and replayed, give what the plain loop gives; and their sizes."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.graphs import Graphs, sizes
from hrm.lane import Lane, launch
from hrm.prediction import InferenceError, Prediction
from hrm.reference_loop import evaluate_batch
from hrm.threads import Team
from hrm.transfers import ToHost, to_device
from schemas import HaltedBy
from tests.unit import reference_data

TEAM = Team(2)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Lanes that capture their steps as on a GPU; a capture here is just the work again."""
    captures: list[Callable[[], None]] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captures.append(work)
        return work

    monkeypatch.setattr(Lane, "_capture", lambda _: capture)
    return captures


@given(capacity=st.integers(1, 4096))
def test_every_number_of_rows_has_a_size_that_is_not_much_larger(capacity: int) -> None:
    given_sizes = sizes(capacity)
    assert given_sizes == sorted(set(given_sizes))
    assert (given_sizes[0], given_sizes[-1]) == (1, capacity)
    for size, larger in itertools.pairwise(given_sizes):
        assert larger <= 2 * size
        if size >= 8:
            assert larger <= 1.5 * size
    assert len(given_sizes) <= 24


def test_the_smallest_size_that_holds_the_rows_is_replayed() -> None:
    computed: list[int] = []
    captured: list[str] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captured.append("")
        return work

    graphs = Graphs(computed.append, 24, capture)
    assert len(captured) == len(sizes(24))
    assert computed == [], "what a capture does is the capture's business"
    for rows in (1, 2, 3, 4, 5, 9, 13, 17, 24):
        graphs(rows)
    assert computed == [1, 2, 4, 4, 8, 12, 16, 24, 24]


@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("capacity", [3, 7, 9])
@torch.inference_mode()
def test_rows_that_come_and_go_answer_as_in_the_plain_loop(
    captured: list[Callable[[], None]], capacity: int, halting: HaltedBy
) -> None:
    lane: Lane[int] = Lane(reference_data.network(), capacity, halting=halting)
    assert len(captured) == len(sizes(capacity))
    examples = reference_data.examples()
    output = evaluate_batch(reference_data.network(), reference_data.batch(), halting=halting)
    waiting, active = list(range(9)), 0
    answers: dict[int, Prediction | InferenceError] = {}
    while waiting or active:
        fresh, waiting = waiting[: capacity - active], waiting[capacity - active :]
        if fresh:
            lane.admit(fresh, [examples[row] for row in fresh], [16] * len(fresh))
        active += len(fresh)
        launch([lane], TEAM)
        halted = lane.finish()
        if halted is not None:
            answers.update(halted.read())
            active -= len(halted.occupants)
    assert sorted(answers) == list(range(9))
    for row, prediction in answers.items():
        assert isinstance(prediction, Prediction)
        assert list(prediction.tokens) == output.predictions[row].tolist()
        assert prediction.act_steps == output.steps[row]
        assert prediction.q_flips == output.q_flips[row]
        assert prediction.q_halt == pytest.approx(output.q_logits[row, 0].item(), abs=1e-4)


@torch.inference_mode()
def test_limits_are_each_rows_own_and_removed_rows_answer_nothing() -> None:
    lane: Lane[str] = Lane(reference_data.network(), 4, halting=HaltedBy.MAX_STEPS)
    examples = reference_data.examples()
    lane.admit(["one", "three", "gone", "two"], examples[:4], [1, 3, 9, 2])
    lane.remove({"gone", "unknown"})
    steps = {}
    for _ in range(3):
        launch([lane], TEAM)
        halted = lane.finish()
        assert halted is not None
        for occupant, prediction in halted.read():
            assert not isinstance(prediction, InferenceError)
            steps[occupant] = prediction.act_steps
    assert steps == {"one": 1, "two": 2, "three": 3}
    launch([lane], TEAM)
    assert lane.finish() is None


@torch.inference_mode()
def test_a_cleared_lane_begins_anew() -> None:
    lane: Lane[str] = Lane(reference_data.network(), 2, halting=HaltedBy.MAX_STEPS)
    example = reference_data.examples()[0]
    lane.admit(["lost"], [example], [2])
    launch([lane], TEAM)
    lane.clear()
    assert lane.finish() is None
    lane.admit(["kept"], [example], [1])
    launch([lane], TEAM)
    halted = lane.finish()
    assert halted is not None
    assert list(halted.occupants) == ["kept"]


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor
    assert ToHost(tensor).read() is tensor


@torch.inference_mode()
def test_steps_that_cannot_be_captured_are_computed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(Lane, "_capture", lambda _: refuse)
    lane: Lane[str] = Lane(reference_data.network(), 4, halting=HaltedBy.MAX_STEPS)
    assert "cannot be captured: operation not permitted when stream is capturing" in caplog.text
    lane.admit(["only"], reference_data.examples()[:1], [2])
    for _ in range(2):
        launch([lane], TEAM)
        halted = lane.finish()
    assert halted is not None
    ((_, prediction),) = halted.read()
    assert isinstance(prediction, Prediction)
    expected = evaluate_batch(
        reference_data.network(),
        reference_data.batch()[:1],
        halting=HaltedBy.MAX_STEPS,
        max_steps=2,
    )
    assert list(prediction.tokens) == expected.predictions[0].tolist()


def test_a_capture_without_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Lane, "_capture", lambda _: refuse)
    with pytest.raises(torch.OutOfMemoryError):
        Lane(reference_data.network(), 4, halting=HaltedBy.MAX_STEPS)
