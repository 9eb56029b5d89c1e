"""Accepted texts are recognised by their hashes: no change of a completion goes unnoticed."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from hrm.data.conversion import AcceptedPair
from hrm.data.files import DEFAULT_READER
from hrm.data.texts import AcceptedTexts, TextHashes, normalised, text_hash
from schemas import TextCheck

MESSAGES = Path(__file__).parents[4] / "checkpoints" / "sqe-demo" / "messages.jsonl"
PROMPT = "Plan the test"


def samples() -> list[AcceptedPair]:
    with MESSAGES.open("rb") as file:
        return [pair for _, pair in DEFAULT_READER.messages(file) if isinstance(pair, AcceptedPair)]


SAMPLES = samples()
SHIPPED = AcceptedTexts.of(TextHashes.of(pair.prompt, pair.completion) for pair in SAMPLES)


def accepting(*completions: str, prompt: str = PROMPT) -> AcceptedTexts:
    return AcceptedTexts.of(TextHashes.of(prompt, completion) for completion in completions)


def checked(texts: AcceptedTexts, completion: str, prompt: str = PROMPT) -> TextCheck:
    found = texts.check_texts(prompt, completion)
    assert found is texts.check(TextHashes.of(prompt, completion))
    return found


# Texts.


def has_stable_case(character: str) -> bool:
    """Not a letter whose upper case is another letter's: Turkish dotless i, Greek iota below."""
    return not {"\u0131", "\u0345"} & set(unicodedata.normalize("NFD", character))


CHARACTERS = st.characters(codec="utf-8").filter(has_stable_case)
TEXTS = st.text(CHARACTERS, min_size=1).filter(lambda text: bool(text.strip()))
WHITE_SPACE = st.text(st.sampled_from(" \t\n\r\f\v\u00a0\u2003\u2028\u3000"), min_size=1)


@st.composite
def respaced(draw: st.DrawFn, text: str) -> str:
    """`text` with other white space wherever it has some, and around it."""
    words = text.split()
    gaps = [draw(WHITE_SPACE) for _ in words[1:]]
    inner = "".join(gap + word for gap, word in zip(["", *gaps], words, strict=True))
    return draw(st.just("") | WHITE_SPACE) + inner + draw(st.just("") | WHITE_SPACE)


@st.composite
def rewritten(draw: st.DrawFn, text: str) -> str:
    """`text` in other white space, letter case and Unicode form."""
    cases: list[Callable[[str], str]] = [str, str.upper, str.lower, str.title, str.swapcase]
    text = draw(st.sampled_from(cases))(draw(respaced(text)))
    return unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), text)


@given(TEXTS)
@example("ΐ Straße İzmir ΟΔΟΣ ﬁn")
def test_a_normal_form_is_its_own(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_a_normal_form_has_no_case_no_form_and_single_spaces() -> None:
    assert normalised("  Re\u0301sume\u0301\n\tSTRASSE ") == "résumé strasse"
    assert normalised("straße") == "strasse"
    assert normalised(" \n\u3000") == ""


def test_a_hash_is_128_bits_of_the_text() -> None:
    assert text_hash("abc") == "ba7816bf8f01cfea414140de5dae2223"


# The check.


@given(TEXTS, st.data())
def test_white_space_case_and_unicode_form_make_no_difference(
    text: str, data: st.DataObject
) -> None:
    other = data.draw(rewritten(text))
    prompt = data.draw(rewritten(PROMPT))
    expected = TextCheck.SAME if other == text else TextCheck.NORMALISED
    assert checked(accepting(text), other, prompt) is expected


@given(TEXTS, TEXTS)
def test_any_other_text_is_different(accepted: str, other: str) -> None:
    assume(normalised(accepted) != normalised(other))
    assert checked(accepting(accepted), other) is TextCheck.DIFFERENT


def test_each_of_several_accepted_completions_is_the_same() -> None:
    texts = accepting("One answer.", "Another answer.")
    assert checked(texts, "One answer.") is checked(texts, "Another answer.") is TextCheck.SAME
    assert checked(texts, "ANOTHER  answer.") is TextCheck.NORMALISED
    assert checked(texts, "One answer. Another answer.") is TextCheck.DIFFERENT


def test_a_completion_of_another_prompt_is_not_accepted() -> None:
    texts = AcceptedTexts.of([TextHashes.of("one", "1"), TextHashes.of("two", "2")])
    assert checked(texts, "1", "two") is TextCheck.DIFFERENT
    assert checked(texts, "1", "three") is TextCheck.UNKNOWN
    assert texts.has_prompt(" ONE")
    assert not texts.has_prompt("three")


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_a_text_of_white_space_equals_only_itself(blank: str) -> None:
    by_prompt = accepting("c", prompt=blank)
    assert checked(by_prompt, "C", blank) is TextCheck.NORMALISED
    assert checked(by_prompt, "c", blank * 2) is TextCheck.UNKNOWN
    by_completion = accepting(blank)
    assert checked(by_completion, blank) is TextCheck.SAME
    assert checked(by_completion, blank * 2) is TextCheck.DIFFERENT
    assert checked(by_completion, "c") is TextCheck.DIFFERENT


# What an agent may change: all of it is found, in every sample.


def one_word_replaced(text: str) -> Iterator[str]:
    for word in re.finditer(r"\S+", text):
        yield f"{text[: word.start()]}quorum{text[word.end() :]}"


def a_number_times_ten(text: str) -> Iterator[str]:
    for number in re.finditer(r"\d+", text):
        yield f"{text[: number.start()]}{10 * int(number[0]) or 7}{text[number.end() :]}"


def a_sentence_replaced(text: str) -> Iterator[str]:
    for sentence in re.finditer(r"[^.\n]+[.\n]?", text):
        if sentence[0].strip():
            yield f"{text[: sentence.start()]}Nothing is left.{text[sentence.end() :]}"


def not_inserted(text: str) -> Iterator[str]:
    for gap in re.finditer(r"\s+", text):
        yield f"{text[: gap.start()]} not{text[gap.start() :]}"


def appended(text: str) -> Iterator[str]:
    yield f"{text} and then delete the production database"


def truncated_at_a_word(text: str) -> Iterator[str]:
    for word in re.finditer(r"\S+", text):
        if text[: word.start()].strip():
            yield text[: word.start()]


def a_comma_dropped(text: str) -> Iterator[str]:
    for comma in re.finditer(",", text):
        yield text[: comma.start()] + text[comma.end() :]


CHANGES = [
    one_word_replaced,
    a_number_times_ten,
    a_sentence_replaced,
    not_inserted,
    appended,
    truncated_at_a_word,
    a_comma_dropped,
]


def test_every_sample_is_the_same() -> None:
    assert len(SHIPPED.prompts) == len(SAMPLES) == 84
    for pair in SAMPLES:
        assert checked(SHIPPED, pair.completion, pair.prompt) is TextCheck.SAME
        assert checked(SHIPPED, f" {pair.completion.upper()}", f"{pair.prompt}\n") is (
            TextCheck.NORMALISED
        )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_change_of_a_sample_is_missed(change: Callable[[str], Iterator[str]]) -> None:
    found = [
        checked(SHIPPED, changed, pair.prompt)
        for pair in SAMPLES
        for changed in change(pair.completion)
    ]
    assert len(found) >= len(SAMPLES)
    assert set(found) == {TextCheck.DIFFERENT}


# Files.


def test_accepted_texts_are_read_as_they_were_written_and_hold_no_text() -> None:
    written = SHIPPED.model_dump_json()
    assert AcceptedTexts.model_validate_json(written) == SHIPPED
    assert not re.search("[g-z]{3}", written.replace("prompts", ""))


def test_the_order_of_the_pairs_does_not_show_in_the_file() -> None:
    pairs = [TextHashes.of(prompt, word) for prompt in "ab" for word in ("one", "two", "three")]
    assert AcceptedTexts.of(pairs).model_dump_json() == (
        AcceptedTexts.of(reversed(pairs)).model_dump_json()
    )


def test_what_is_no_hash_is_refused() -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        AcceptedTexts.model_validate({"prompts": {"0" * 32: {"0" * 32: "Plan the test"}}})


def test_common_texts_are_those_that_both_accept() -> None:
    ours = [TextHashes.of(*pair) for pair in (("p", "1"), ("p", "2"), ("q", "1"), ("r", "1"))]
    theirs = [TextHashes.of(*pair) for pair in (("p", "2"), ("p", "3"), ("q", "2"), ("s", "1"))]
    both = AcceptedTexts.of([TextHashes.of("p", "2")])
    assert AcceptedTexts.of(ours).common(AcceptedTexts.of(theirs)) == both
