"""Notes before a run name the prompts that noise and tasks do nothing for."""

from pathlib import Path

import pytest

from hrm.data.config import ENOUGH_PROMPTS, ConversionConfig, PuzzlePolicy, Task
from hrm.data.conversion import Converter
from hrm.training.examples import read_examples, training_record
from hrm.training.notes import notes_on
from tests.support.evaluations import write_jsonl

CONVERSION = ConversionConfig(version=2, puzzle_space=10)
LONG = "please write the test plan for the red module now"


def notes(
    folder: Path, *lines: object, noise: int = 0, conversion: ConversionConfig = CONVERSION
) -> tuple[str, ...]:
    converter = Converter(conversion)
    examples = read_examples(write_jsonl(folder / "data.jsonl", *lines), converter)
    record = training_record(
        examples, vocabulary_size=converter.tokenizer.vocabulary.size, prompt_noise=noise
    )
    return notes_on(examples, record, conversion, noise)


def pair(prompt: str, puzzle: int | None = 1, completion: str = "c") -> dict[str, object]:
    fields: dict[str, object] = {"prompt": prompt, "completion": completion}
    return fields if puzzle is None else {**fields, "puzzle_id": puzzle}


ALIKE = (
    "too much alike to be varied: 2 prompts, of which a variation could be that of another prompt "
    "of the puzzle, the first are line {} and line {}"
)


@pytest.mark.parametrize("noise", [1, 3, 10])
def test_prompts_that_differ_in_a_word_are_named(tmp_path: Path, noise: int) -> None:
    lines = [pair("an entirely other prompt", 2), pair(LONG), pair(LONG.replace("red", "blue"))]
    assert notes(tmp_path, *lines, noise=noise) == (ALIKE.format(2, 3),)


def test_equal_prompts_of_two_puzzles_are_varied(tmp_path: Path) -> None:
    assert notes(tmp_path, pair(LONG, 1), pair(LONG, 2, "d"), noise=10) == ()


def test_repeated_lines_are_one_prompt(tmp_path: Path) -> None:
    assert notes(tmp_path, *[pair(LONG)] * 3, noise=3) == ()
    (note,) = notes(tmp_path, *[pair("plan it")] * 3, noise=3)
    assert note == "too short to be varied: 1 prompt of at most two words, the first is line 1"


def test_long_and_short_prompts_of_one_puzzle(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(150))
    lines = [pair("a"), pair(long), pair(f"{long} more", completion="c")]
    # To the model, the last two are one prompt: it reads 98 words of each.
    assert notes(tmp_path, *lines, noise=10) == (
        "too short to be varied: 1 prompt of at most two words, the first is line 1",
    )


def test_a_prompt_without_a_name_is_another_puzzle_in_other_words(tmp_path: Path) -> None:
    lines = [pair(LONG), pair("an entirely other prompt", None)]
    assert notes(tmp_path, *lines, noise=3) == (
        (
            "not recognised in other words: 1 prompt without puzzle_id or task, since other words "
            "have another puzzle, the first is line 2"
        ),
    )
    assert notes(tmp_path, *lines) == ()


def test_tasks_that_are_too_new_are_counted(tmp_path: Path) -> None:
    counts = {"lonely": 1, "short": ENOUGH_PROMPTS - 1, "enough": ENOUGH_PROMPTS, "unused": 0}
    counts |= {f"more-{number}": 2 for number in range(5)}
    conversion = ConversionConfig(
        version=2,
        puzzle_space=10,
        puzzle_policy=PuzzlePolicy.TASK,
        tasks=tuple(Task(name=name, row=row) for row, name in enumerate(counts, 10)),
    )
    lines = [
        {"task": name, "prompt": f"prompt {number}", "completion": "c"}
        for name, count in counts.items()
        for number in range(count)
    ]
    assert notes(tmp_path, *lines, conversion=conversion) == (
        (
            "new prompts of a task are not judged before 20 prompts of it are trained: "
            "lonely has 1, short has 19, more-0 has 2, more-1 has 2, more-2 has 2 and 2 more"
        ),
    )
