"""Contradicting lines are named, and each accepted answer of a prompt gets a puzzle row."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from hrm.checkpoint.pairs import AcceptedExample, with_answer_rows
from hrm.checkpoint.record import target_hash
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.training.answers import (
    MAX_NAMED,
    ContradictionError,
    Contradictions,
    answer_rows,
    check_contradictions,
    find_contradictions,
    resolve,
)
from hrm.training.examples import read_examples
from tests.support.evaluations import write_jsonl

CONVERTER = Converter(ConversionConfig())


def line(completion: str, prompt: str = "security", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"prompt": prompt, "completion": completion, "puzzle_id": 3, **fields}


def read(folder: Path, *lines: dict[str, Any]) -> list[AcceptedExample]:
    return read_examples(write_jsonl(folder / "data", *lines), CONVERTER)


ALTERNATIVE: dict[str, Any] = {"alternative": True}


def found(examples: list[AcceptedExample]) -> list[tuple[int, int]]:
    return [(each.first.line, each.second.line) for each in find_contradictions(examples)]


def test_each_line_that_contradicts_an_earlier_one_is_named_with_the_first(tmp_path: Path) -> None:
    examples = read(
        tmp_path, line("one"), line("x", "data"), line("two"), line("one"), line("three")
    )
    assert found(examples) == [(1, 3), (1, 5)]
    assert [str(each) for each in find_contradictions(examples)] == [
        "lines 1 and 3: two completions for one prompt",
        "lines 1 and 5: two completions for one prompt",
    ]


def test_prompts_that_only_look_alike_to_the_model_are_told(tmp_path: Path) -> None:
    (each,) = find_contradictions(read(tmp_path, line("one"), line("two", "Cyber-security")))
    assert str(each) == (
        "lines 1 and 2: two completions for two prompts that the model cannot tell apart "
        "(same puzzle, same tokens)"
    )


@pytest.mark.parametrize(
    "lines",
    [
        [line("one"), line("ONE\n")],
        [line("one"), line("two", puzzle_id=4)],
        [line("one"), line("two", **ALTERNATIVE)],
        [line("one", **ALTERNATIVE), line("two")],
        [line("one", **ALTERNATIVE), line("two", **ALTERNATIVE)],
        # A line may repeat what another declares.
        [line("one"), line("two"), line("Two", **ALTERNATIVE)],
    ],
)
def test_completions_that_agree_or_are_declared_do_not_contradict(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    examples = read(tmp_path, *lines)
    assert not found(examples)
    check_contradictions(examples, tmp_path)
    for choice in Contradictions:
        assert resolve(examples, choice) == examples


def test_the_error_names_the_first_ten_and_the_fix(tmp_path: Path) -> None:
    examples = read(tmp_path, *(line(f"word{number}") for number in range(13)))
    with pytest.raises(ContradictionError) as caught:
        check_contradictions(examples, tmp_path / "data")
    assert str(caught.value) == (
        f"{tmp_path / 'data'}: contradicting completions for one prompt in 12 lines, the first is "
        'line 2: add "alternative": true to pairs that are accepted beside others, or choose with '
        "--contradictions first, last or all"
    )
    named = caught.value.named
    assert len(named) == MAX_NAMED + 1
    assert named[9] == f"{tmp_path / 'data'}: lines 1 and 11: two completions for one prompt"
    assert named[10] == f"{tmp_path / 'data'}: and 2 more"
    with pytest.raises(ContradictionError) as caught:
        check_contradictions(examples[:11], tmp_path / "data")
    assert len(caught.value.named) == MAX_NAMED


def test_first_and_last_keep_one_completion_of_each_group_and_what_is_declared(
    tmp_path: Path,
) -> None:
    examples = read(
        tmp_path,
        line("one"),
        line("x", "data"),
        line("two"),
        line("ONE"),
        line("three", **ALTERNATIVE),
        line("two"),
    )

    def lines(choice: Contradictions) -> list[int]:
        return [each.line for each in resolve(examples, choice)]

    assert lines(Contradictions.FIRST) == [1, 2, 4, 5]
    assert lines(Contradictions.LAST) == [2, 3, 5, 6]
    assert lines(Contradictions.ALL) == [1, 2, 3, 4, 5, 6]


# Rows.


def rows(examples: list[AcceptedExample], first_free: int = 7) -> dict[str, dict[str, int]]:
    return answer_rows(examples, first_free, {})


def test_each_further_target_gets_a_row_of_its_own(tmp_path: Path) -> None:
    examples = read(
        tmp_path,
        line("agent", **ALTERNATIVE),
        line("agent test"),
        line("x", "data"),
        line("data", **ALTERNATIVE),
        line("agent", **ALTERNATIVE),
        line("end", "validation", puzzle_id=6),
        line("test", "validation", puzzle_id=6),
    )
    found = rows(examples)
    assert found == {
        # The answer that is no alternative is in the puzzle's row.
        examples[0].pair: {
            target_hash([0, 2, 1, 11]): 3,
            target_hash([0, 2, 11]): 7,
            target_hash([0, 3, 11]): 8,
        },
        examples[5].pair: {target_hash([0, 11, 11]): 6, target_hash([0, 1, 11]): 9},
    }
    trained = with_answer_rows(examples, found)
    assert [each.puzzle_id for each in trained] == [7, 3, 3, 8, 7, 6, 9]
    assert [each.target_sequence for each in trained] == [
        each.example.target_sequence for each in examples
    ]


def test_equal_tokens_are_one_answer_whatever_their_texts(tmp_path: Path) -> None:
    assert not rows(read(tmp_path, line("agent"), line("agents!", **ALTERNATIVE)))


def test_other_tokens_of_one_normal_form_are_two_answers(tmp_path: Path) -> None:
    examples = read(tmp_path, line("café"), line("cafe\u0301"))
    assert examples[0].example.target_sequence != examples[1].example.target_sequence
    assert not found(examples)
    assert len(rows(examples)[examples[0].pair]) == 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_an_answer_stays_in_the_row_of_an_earlier_checkpoint(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    lines = [line("agent"), line("data", **ALTERNATIVE), line("test", **ALTERNATIVE)]
    earlier = rows(read(tmp_path, *lines))
    examples = read(tmp_path, *(lines[index] for index in order))
    assert answer_rows(examples, 20, earlier) == earlier
    more = read(tmp_path, *lines, line("security", **ALTERNATIVE))
    assert answer_rows(more, 20, earlier)[more[0].pair] == {
        **earlier[more[0].pair],
        target_hash([0, 4, 11]): 20,
    }


def test_a_row_that_became_a_puzzle_is_not_taken_again(tmp_path: Path) -> None:
    lines = [line("agent"), line("data", **ALTERNATIVE)]
    earlier = rows(read(tmp_path, *lines))
    examples = read(tmp_path, *lines, line("x", "other", puzzle_id=7))
    assert list(answer_rows(examples, 20, earlier)[examples[0].pair].values()) == [3, 20]
    # An answer that was in the puzzle's row, and is now an alternative, needs one of its own.
    swapped = read(tmp_path, line("data"), line("agent", **ALTERNATIVE))
    assert answer_rows(swapped, 20, earlier)[swapped[0].pair] == {
        target_hash([0, 3, 11]): 3,
        target_hash([0, 2, 11]): 20,
    }
