"""Captured steps of fixed sizes give the plain loop's answers; the sizes are few and close."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrm.inference.lane import Answers, Lane, Occupant, is_out_of_memory
from hrm.inference.lanes import Lanes
from hrm.inference.prediction import InferenceError, Prediction
from hrm.inference.transfers import ToHost, to_device
from hrm.kernels.graphs import Graphs, sizes
from hrm.model.network import HRM, State
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy
from tests.support import reference as reference_data


def lanes_of(capacity: int, halting: HaltedBy = HaltedBy.MAX_STEPS) -> Lanes[Any]:
    network = reference_data.network()
    return Lanes([network], capacity, halting=halting, keep_logits=False, threads=2)


def finish(lanes: Lanes[Occupant]) -> Answers[Occupant] | None:
    """The answers of the only lane."""
    return next((answers for _, answers in lanes.finish()), None)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Let lanes capture their steps as on a GPU. A replay here just does the work again."""
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
        if size >= 64:
            empty = larger - (size + 1)
            assert empty <= larger / 9
    assert len(given_sizes) <= (34 if capacity <= 512 else 58)


def test_the_smallest_size_that_holds_the_rows_is_replayed() -> None:
    computed: list[int] = []
    captured: list[str] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captured.append("")
        return work

    graphs = Graphs(computed.append, 24, capture)
    assert len(captured) == len(sizes(24))
    assert computed == [], "only the capture itself may compute"
    for rows in (1, 2, 3, 4, 5, 9, 13, 17, 24):
        graphs(rows)
    assert computed == [1, 2, 4, 4, 8, 12, 16, 24, 24]


@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("capacity", [3, 7, 9])
@torch.inference_mode()
def test_rows_that_come_and_go_answer_as_in_the_plain_loop(
    captured: list[Callable[[], None]], capacity: int, halting: HaltedBy
) -> None:
    lanes: Lanes[int] = lanes_of(capacity, halting)
    assert len(captured) == len(sizes(lanes.slots + lanes.reserve))
    examples = reference_data.examples()
    output = evaluate_batch(reference_data.network(), reference_data.batch(), halting=halting)
    waiting, active = list(range(9)), 0
    answers: dict[int, Prediction | InferenceError] = {}
    while waiting or active:
        fresh, waiting = waiting[: capacity - active], waiting[capacity - active :]
        if fresh:
            lanes.admit(fresh, [examples[row] for row in fresh], [[16] * len(fresh)])
        active += len(fresh)
        lanes.launch()
        halted = finish(lanes)
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
def test_each_row_has_its_own_limit_and_removed_rows_give_no_answer() -> None:
    lanes: Lanes[str] = lanes_of(4)
    examples = reference_data.examples()
    lanes.admit(["one", "three", "gone", "two"], examples[:4], [[1, 3, 9, 2]])
    lanes.remove({"gone", "unknown"})
    steps = {}
    for _ in range(3):
        lanes.launch()
        halted = finish(lanes)
        assert halted is not None
        for occupant, prediction in halted.read():
            assert not isinstance(prediction, InferenceError)
            steps[occupant] = prediction.act_steps
    assert steps == {"one": 1, "two": 2, "three": 3}
    lanes.launch()
    assert finish(lanes) is None


@torch.inference_mode()
def test_a_step_leaves_rows_that_are_not_chosen_unchanged() -> None:
    lanes: Lanes[str] = lanes_of(4)
    lanes.admit(["gone", "later", "sooner"], reference_data.examples()[:3], [[2, 4, 3]])
    lanes.remove({"gone"})
    expected = {
        limit: evaluate_batch(
            reference_data.network(),
            reference_data.batch(),
            halting=HaltedBy.MAX_STEPS,
            max_steps=limit,
        )
        for limit in (3, 4)
    }
    chosen = [["sooner"], ["later"], ["sooner"], None, ["gone", "sooner"], ["later"], ["later"]]
    answers: dict[str, tuple[int, Prediction | InferenceError]] = {}
    for turn, each in enumerate(chosen):
        lanes.launch(each)
        halted = finish(lanes)
        if halted is not None:
            answers.update({name: (turn, prediction) for name, prediction in halted.read()})
    assert {name: turn for name, (turn, _) in answers.items()} == {"sooner": 3, "later": 6}
    for name, row, limit in (("later", 1, 4), ("sooner", 2, 3)):
        prediction = answers[name][1]
        assert isinstance(prediction, Prediction)
        assert list(prediction.tokens) == expected[limit].predictions[row].tolist()
        assert prediction.act_steps == limit
        assert prediction.q_flips == expected[limit].q_flips[row]


@torch.inference_mode()
def test_a_row_that_is_removed_during_a_step_does_not_halt() -> None:
    lanes: Lanes[str] = lanes_of(3)
    lanes.admit(["gone", "one", "two"], reference_data.examples()[:3], [[1, 1, 2]])
    lanes.launch()
    lanes.remove({"gone"})
    halted = finish(lanes)
    assert halted is not None
    ((occupant, prediction),) = halted.read()
    assert occupant == "one"
    assert isinstance(prediction, Prediction)
    expected = evaluate_batch(
        reference_data.network(),
        reference_data.batch()[1:2],
        halting=HaltedBy.MAX_STEPS,
        max_steps=1,
    )
    assert list(prediction.tokens) == expected.predictions[0].tolist()
    lanes.launch()
    lanes.remove({"two"})
    assert finish(lanes) is None


@torch.inference_mode()
def test_a_cleared_lane_starts_again() -> None:
    lanes: Lanes[str] = lanes_of(2)
    example = reference_data.examples()[0]
    lanes.admit(["lost"], [example], [[2]])
    lanes.launch()
    lanes.clear()
    assert finish(lanes) is None
    lanes.admit(["kept"], [example], [[1]])
    lanes.launch()
    halted = finish(lanes)
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
    lanes: Lanes[str] = lanes_of(4)
    assert "cannot be captured: operation not permitted when stream is capturing" in caplog.text
    lanes.admit(["only"], reference_data.examples()[:1], [[2]])
    for _ in range(2):
        lanes.launch()
        halted = finish(lanes)
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


@torch.inference_mode()
def test_steps_that_cannot_be_captured_have_the_same_few_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Lane, "_capture", lambda _: refuse)
    lanes: Lanes[int] = lanes_of(9)
    computed: list[int] = []

    def step(state: State, _: Tensor) -> State:
        computed.append(len(state.z_H))
        return state

    monkeypatch.setattr(HRM, "step", lambda _, state, x: step(state, x))
    for row in range(9):
        lanes.admit([row], reference_data.examples()[row : row + 1], [[16]])
        lanes.launch()
        finish(lanes)
    assert computed == [1, 2, 4, 4, 8, 8, 8, 8, 12]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_capture_without_memory_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
    at_the_end: bool,  # noqa: FBT001
) -> None:
    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if at_the_end:
                raise RuntimeError("CUDA error: operation failed due to a previous error")

    monkeypatch.setattr(Lane, "_capture", lambda _: refuse)
    with pytest.raises(RuntimeError) as caught:
        Lane(reference_data.network(), 4, halting=HaltedBy.MAX_STEPS)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_the_devices_memory_are_known(error: Exception, *, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
