"""Conversion 2: normalised texts, a token for nearly every word, and long completions in parts."""

import io
import json
import random
import unicodedata
from itertools import chain
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hrm.data.config import ConversionConfig, PuzzlePolicy, WordHash
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine, convert_file
from hrm.data.vocabulary import NAMED_WORDS, Tokenizer, unread_words
from schemas import HRMExample, MessageRejected, RejectionReason

CONFIG = ConversionConfig(version=2)
CONVERTER = Converter(CONFIG)
PADDING, START, END, FIRST_NAMED, FIRST_HASHED = 0, 1, 2, 3, 13

WORDS = st.text(min_size=1, max_size=8).filter(lambda text: text.split() == [text])
TEXTS = st.lists(WORDS, min_size=1, max_size=250).map(" ".join)
CONFIGS = st.builds(
    ConversionConfig,
    version=st.just(2),
    hashed_tokens=st.integers(64, 2000),
    case_sensitive=st.booleans(),
    word_hash=st.sampled_from(WordHash),
    puzzle_policy=st.sampled_from([PuzzlePolicy.LINE_INDEX, PuzzlePolicy.PROMPT_HASH]),
)


def words(count: int) -> str:
    return " ".join(f"word{number}" for number in range(count))


# Words.


def test_a_named_word_has_its_token_and_no_other_word_has_it() -> None:
    tokenizer = Tokenizer(CONFIG)
    for token, word in enumerate(NAMED_WORDS, start=FIRST_NAMED):
        assert tokenizer.token(word) == tokenizer.token(word.upper()) == token
    for word in ("start", "end", "padding", "tests", "send", "restart", "data,", "metadata"):
        assert tokenizer.token(word) >= FIRST_HASHED


def test_another_word_has_the_token_of_its_digest() -> None:
    digest = int("8fc42c6ddf9966db3b09e84365034357", 16)  # of "the", by md5sum
    assert Tokenizer(CONFIG).token("The") == FIRST_HASHED + digest % 1011


@given(CONFIGS, WORDS)
def test_no_word_has_a_reserved_token(config: ConversionConfig, word: str) -> None:
    tokenizer = Tokenizer(config)
    assert FIRST_NAMED <= tokenizer.token(word) < tokenizer.vocabulary.size
    assert tokenizer.vocabulary.size == FIRST_HASHED + config.hashed_tokens


def test_one_of_1011_changed_words_keeps_its_token() -> None:
    source = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokenizer, same, drawn = Tokenizer(CONFIG), 0, 50_000
    for _ in range(drawn):
        old, new = ("".join(source.choices(letters, k=7)) for _ in range(2))
        same += tokenizer.token(old) == tokenizer.token(new)
    # Within four standard deviations of 1/1011.
    assert 22 <= same <= 77


# Normal form.


@given(CONFIGS, TEXTS, TEXTS, st.sampled_from(["NFC", "NFD"]), st.sampled_from(["\n", "\t ", "  "]))
def test_white_space_and_unicode_form_make_no_difference(
    config: ConversionConfig,
    prompt: str,
    completion: str,
    form: Literal["NFC", "NFD"],
    space: str,
) -> None:
    def other(text: str) -> str:
        return space + unicodedata.normalize(form, text).replace(" ", space) + space

    converter = Converter(config)
    first = converter.convert(prompt, completion, line_index=0)
    second = converter.convert(other(prompt), other(completion), line_index=0)
    assert first.model_dump(exclude={"metadata"}) == second.model_dump(exclude={"metadata"})


@pytest.mark.parametrize("other", ["STRASSE", "strasse", "Strasse"])
def test_letter_case_makes_a_difference_only_if_asked_for(other: str) -> None:
    sensitive = Converter(ConversionConfig(version=2, case_sensitive=True))
    for converter, same in ((CONVERTER, True), (sensitive, False)):
        made = [converter.convert("p", text).target_sequence for text in ("straße", other)]
        assert (made[0] == made[1]) is same
    puzzles = {CONVERTER.puzzle_id_for(text) for text in ("A  plan", "a plan ", "A\nPLAN")}
    assert len(puzzles) == 1


@pytest.mark.parametrize(("prompt", "completion"), [(" ", "c"), ("p", "\n\t "), ("\u2003", "c")])
def test_white_space_alone_is_refused(prompt: str, completion: str) -> None:
    field = "prompt" if prompt.isspace() else "completion"
    for convert in (CONVERTER.convert, CONVERTER.convert_to_json):
        with pytest.raises(MessageRejected) as caught:
            convert(prompt, completion)
        assert caught.value.reason is RejectionReason.EMPTY_TEXT
        assert caught.value.detail == f"field '{field}': white space alone: send words"
    published = Converter(ConversionConfig()).convert(prompt, completion)
    assert (0, 11) in (published.input_sequence, published.target_sequence)


# Parts.


@pytest.mark.parametrize(
    ("count", "lengths"),
    [
        (1, [3]),
        (98, [100]),
        (99, [100, 1]),
        (100, [100, 2]),
        (198, [100, 100]),
        (199, [100, 100, 1]),
        (1000, [100] * 10 + [2]),
    ],
)
def test_a_long_completion_is_read_in_parts(count: int, lengths: list[int]) -> None:
    example = CONVERTER.convert("the prompt", words(count))
    assert example.target_sequence[0] == START
    assert example.target_sequence[-1] == END
    parts = CONVERTER.parts(example)
    assert [len(part.target_sequence) for part in parts] == lengths
    assert tuple(chain(*(part.target_sequence for part in parts))) == example.target_sequence
    # Only the first token of the input says which part is asked for.
    assert len({part.input_sequence for part in parts}) == len(parts)
    assert {part.input_sequence[1:] for part in parts} == {example.input_sequence[1:]}
    assert parts[0].input_sequence[0] == START
    assert {part.puzzle_id for part in parts} == {example.puzzle_id}


@given(CONFIGS, TEXTS, TEXTS)
def test_parts_are_examples(config: ConversionConfig, prompt: str, completion: str) -> None:
    converter = Converter(config)
    for part in converter.parts(converter.convert(prompt, completion, line_index=1)):
        assert HRMExample.model_validate(part.model_dump()) == part
        assert END not in part.target_sequence[:-1]


@given(st.lists(WORDS, min_size=1, max_size=250), WORDS, st.data())
def test_a_changed_word_changes_exactly_the_part_that_holds_it(
    text: list[str], other: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    changed = [*text[:place], other, *text[place + 1 :]]
    first, second = (
        CONVERTER.parts(CONVERTER.convert("p", " ".join(each))) for each in (text, changed)
    )
    tokens = [Tokenizer(CONFIG).token(each[place]) for each in (text, changed)]
    differing = [
        number
        for number, parts in enumerate(zip(first, second, strict=True))
        if parts[0].target_sequence != parts[1].target_sequence
    ]
    assert differing == ([] if tokens[0] == tokens[1] else [(place + 1) // 100])


def test_conversion_1_has_no_parts() -> None:
    converter = Converter(ConversionConfig())
    example = converter.convert("p", words(1000))
    assert len(example.target_sequence) == 100
    assert converter.parts(example) == (example,)


def test_words_beyond_64_parts_are_not_read() -> None:
    text = words(6401)
    example = CONVERTER.convert("p", text)
    assert len(CONVERTER.parts(example)) == 64
    assert unread_words(text, example.target_sequence) == 3
    assert unread_words(words(6398), CONVERTER.convert("p", words(6398)).target_sequence) == 0


def test_words_of_a_prompt_beyond_98_are_not_read_but_choose_the_puzzle() -> None:
    examples = [CONVERTER.convert(words(98) + last, "c") for last in ("", " more", " words")]
    assert len({example.input_sequence for example in examples}) == 1
    assert len({example.puzzle_id for example in examples}) == 3
    assert unread_words(words(98) + " more", examples[1].input_sequence) == 1


def test_more_parts_than_there_are_marks_for_are_refused() -> None:
    converter = Converter(ConversionConfig(version=2, hashed_tokens=2))
    assert len(converter.parts(converter.convert("p", words(298)))) == 3
    with pytest.raises(MessageRejected, match="4 parts of 100 tokens, but the checkpoint tells 3"):
        converter.parts(converter.convert("p", words(299)))


# Files.


@given(CONFIGS, TEXTS, TEXTS)
def test_the_json_is_that_of_the_example(
    config: ConversionConfig, prompt: str, completion: str
) -> None:
    converter = Converter(config)
    example = converter.convert(prompt, completion, line_index=7)
    assert converter.convert_to_json(prompt, completion, None, 7) == example.model_dump_json()


def test_a_blank_text_in_a_file_is_one_refused_line() -> None:
    lines = [("p", "c"), (" ", "c"), ("p", "data")]
    source = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in lines)
    sink, refused = io.BytesIO(), list[RefusedLine]()
    result = convert_file(io.BytesIO(source.encode()), sink, CONVERTER, on_refused=refused.append)
    assert (result.converted, [line.number for line in refused]) == (2, [2])
    assert result.refused == {RejectionReason.EMPTY_TEXT: 1}
    assert len(sink.getvalue().splitlines()) == 2


def test_an_example_of_another_conversion_is_refused() -> None:
    first = Converter(ConversionConfig())
    for text, problem in (
        ("unusual", "token .*, but conversion 1 has 12"),
        ("data " * 99, "101 tokens, but conversion 1 gives 100|token 15"),
    ):
        example = CONVERTER.convert("test", text)
        assert CONVERTER.example_of(example) is example
        with pytest.raises(MessageRejected, match=problem) as caught:
            first.example_of(example)
        assert caught.value.reason is RejectionReason.INVALID_VALUE


def test_an_example_of_conversion_1_is_refused() -> None:
    example = Converter(ConversionConfig()).convert("test", "data")
    with pytest.raises(MessageRejected, match="not from the start 1 to the end 2") as caught:
        CONVERTER.example_of(example)
    assert caught.value.reason is RejectionReason.INVALID_VALUE


# Settings.


def test_settings_of_version_1_are_written_as_before_there_was_another() -> None:
    assert ConversionConfig().model_dump(mode="json") == {
        "word_hash": "md5",
        "puzzle_policy": "prompt_hash",
        "puzzle_space": 1000,
    }
    assert ConversionConfig.model_validate_json("{}").version == 1
    for config in (ConversionConfig(), CONFIG):
        assert ConversionConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"hashed_tokens": 100}, "hashed_tokens: conversion 1 has no choice of it"),
        ({"case_sensitive": True}, "case_sensitive: conversion 1 has no choice of it"),
        ({"version": 3}, "Input should be 1 or 2"),
        ({"version": 2, "hashed_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_no_conversion_has_are_refused(
    settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        ConversionConfig.model_validate(settings)
