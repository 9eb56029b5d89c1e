"""Examples become padded tensors, or are refused if the network cannot take them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.model.batch import Batch, ExampleError, check_fits, encode, encode_inputs
from schemas import HRMExample
from tests.support.checkpoints import TINY
from tests.support.examples import example


def test_inputs_are_padded_with_start_and_labels_are_ignored_beyond_the_target() -> None:
    batch = encode(
        [example(4, (0, 3, 11), (0, 11)), example(2, (0, 11), (0, 1, 2, 3, 4, 5, 11))], TINY
    )
    assert batch.inputs.tolist() == [[0, 3, 11, 0, 0, 0, 0], [0, 11, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[0, 11] + [-100] * 5, [0, 1, 2, 3, 4, 5, 11]]
    assert batch.puzzle_ids.tolist() == [4, 2]
    assert len(batch) == 2
    assert {batch.inputs.dtype, batch.labels.dtype, batch.puzzle_ids.dtype} == {torch.int64}


def test_no_examples_are_an_empty_batch_of_the_right_width() -> None:
    batch = encode([], TINY)
    assert len(batch) == 0
    assert batch.inputs.shape == batch.labels.shape == (0, 7)


@given(st.lists(st.lists(st.integers(0, 11), min_size=2, max_size=7), max_size=4))
def test_inputs_are_encoded_the_same_without_labels(sequences: list[list[int]]) -> None:
    examples = [example(row, inputs=tuple(each)) for row, each in enumerate(sequences)]
    inputs, puzzle_ids = encode_inputs(examples, TINY)
    assert inputs.tolist() == [each + [0] * (7 - len(each)) for each in sequences]
    assert inputs.dtype == puzzle_ids.dtype == torch.int64
    assert puzzle_ids.tolist() == list(range(len(sequences)))


def test_the_last_row_and_the_full_length_fit() -> None:
    full = tuple(range(7))
    check_fits(example(4, full, full), TINY)


@pytest.mark.parametrize(
    ("refused", "wording"),
    [
        (example(0, (0,) * 8), "a sequence of 8 tokens, but the checkpoint takes 7"),
        (example(0, (0, 11), (0,) * 9), "a sequence of 9 tokens, but the checkpoint takes 7"),
        (example(5), "puzzle_id 5, but the checkpoint's table has rows 0 to 4"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_in_one_line(
    refused: HRMExample, wording: str
) -> None:
    for attempt in (lambda: check_fits(refused, TINY), lambda: encode([example(), refused], TINY)):
        with pytest.raises(ExampleError) as caught:
            attempt()
        assert wording in str(caught.value)
        assert str(caught.value).isprintable()


def test_any_puzzle_fits_without_a_puzzle_table() -> None:
    without = TINY.model_copy(update={"puzzle_emb_ndim": 0})
    check_fits(example(10**6), without)
    assert encode([example(10**400)], without).puzzle_ids.tolist() == [0]


def counting(start: int, rows: int) -> Batch:
    grid = torch.arange(start, start + rows)
    return Batch(grid.view(-1, 1).repeat(1, 3), grid.view(-1, 1).repeat(1, 3) + 100, grid)


def test_rows_are_taken_by_slice_and_by_index() -> None:
    batch = counting(0, 5)
    assert batch[1:3].puzzle_ids.tolist() == [1, 2]
    chosen = batch[torch.tensor([4, 0, 4])]
    assert chosen.puzzle_ids.tolist() == [4, 0, 4]
    assert chosen.inputs[:, 0].tolist() == [4, 0, 4]
    assert chosen.labels[:, 2].tolist() == [104, 100, 104]


def test_replace_changes_the_given_rows_and_leaves_the_original() -> None:
    batch = counting(0, 4)
    replaced = batch.replace(torch.tensor([False, True, False, True]), counting(50, 2))
    assert replaced.puzzle_ids.tolist() == [0, 50, 2, 51]
    assert replaced.inputs[:, 1].tolist() == [0, 50, 2, 51]
    assert replaced.labels[:, 1].tolist() == [100, 150, 102, 151]
    assert batch.puzzle_ids.tolist() == [0, 1, 2, 3]
    assert batch.inputs[:, 1].tolist() == [0, 1, 2, 3]


def test_a_batch_moves_as_a_whole() -> None:
    moved = counting(0, 2).to("meta")
    assert {moved.inputs.device.type, moved.labels.device.type, moved.puzzle_ids.device.type} == {
        "meta"
    }
