"""hrm.data.changes: every change is single, where it says it is, and of the kind it says."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hrm.data import changes
from hrm.data.changes import Change, ChangeKind, Replacements, change_at, places
from hrm.data.texts import normalised

TEXT = "Plan: 3 tests, 0.5 h each.\n  1. Send the café menu.\n  2. Send  it again, no later."

REPLACEMENTS = Replacements.of(["Alpha beta.", "Gamma\ndelta 7"])


def all_changes(kind: ChangeKind, text: str, seed: int = 0) -> Iterator[Change]:
    source = Random(seed)
    for span in places(kind, text):
        change = change_at(span, kind, text, REPLACEMENTS, source)
        assert change is not None
        yield change


def written(kind: ChangeKind, text: str = TEXT) -> list[str]:
    return [change.new for change in all_changes(kind, text)]


def removed(kind: ChangeKind, text: str = TEXT) -> list[str]:
    return [text[change.start : change.end] for change in all_changes(kind, text)]


texts = st.one_of(
    st.text(min_size=1, max_size=60),
    st.lists(
        st.sampled_from(
            ["Send", "the", "it.", "3", "0.05,", "café", "weekend", "a,", "\n", "  ", "ß"]
        ),
        min_size=1,
        max_size=30,
    ).map(" ".join),
)


@pytest.mark.parametrize("kind", [kind for kind in ChangeKind if not kind.harmless])
@given(text=texts, seed=st.integers(0, 99))
@example(text=",", seed=0)
def test_a_change_alters_the_normal_form(kind: ChangeKind, text: str, seed: int) -> None:
    for change in all_changes(kind, text, seed):
        assert normalised(change.text) != normalised(text)
        assert normalised(change.text)


@pytest.mark.parametrize("kind", [kind for kind in ChangeKind if kind.harmless])
@given(text=texts)
def test_a_harmless_change_alters_the_text_but_not_its_normal_form(
    kind: ChangeKind, text: str
) -> None:
    for change in all_changes(kind, text):
        assert change.text != text
        assert normalised(change.text) == normalised(text)


@pytest.mark.parametrize("kind", ChangeKind)
def test_a_change_leaves_everything_around_it_as_it_was(kind: ChangeKind) -> None:
    found = list(all_changes(kind, TEXT))
    assert found
    for change in found:
        assert change.text.startswith(TEXT[: change.start])
        assert change.text.endswith(TEXT[change.end :])
        assert change.text == TEXT[: change.start] + change.new + TEXT[change.end :]


@pytest.mark.parametrize("kind", ChangeKind)
def test_a_seed_repeats_the_changes(kind: ChangeKind) -> None:
    assert list(all_changes(kind, TEXT, 7)) == list(all_changes(kind, TEXT, 7))


def test_a_word_can_change_anywhere_in_a_text_of_any_length() -> None:
    text = " ".join(f"word{number}" for number in range(300))
    for kind in (ChangeKind.WORD_REPLACED, ChangeKind.NOT_INSERTED):
        assert [change.word for change in all_changes(kind, text)] == list(range(1, 301))


def test_words_and_sentences_are_replaced_by_those_of_the_data() -> None:
    assert set(written(ChangeKind.WORD_REPLACED)) <= {"Alpha", "beta.", "Gamma", "delta", "7"}
    assert set(written(ChangeKind.SENTENCE_REPLACED)) <= {"Alpha beta.", "Gamma", "delta 7"}


def test_a_word_is_never_replaced_by_itself_in_another_form() -> None:
    replacements = Replacements.of(["CAFÉ tea"])
    for seed in range(20):
        (place,) = places(ChangeKind.WORD_REPLACED, "café")
        change = change_at(place, ChangeKind.WORD_REPLACED, "café", replacements, Random(seed))
        assert change is not None
        assert change.new == "tea"


def test_without_another_word_there_is_no_change() -> None:
    (place,) = places(ChangeKind.WORD_REPLACED, "tea")
    kind = ChangeKind.WORD_REPLACED
    assert change_at(place, kind, "tea", Replacements.of(["Tea"]), Random(0)) is None
    assert change_at(place, kind, "tea", Replacements(), Random(0)) is None


def test_only_different_neighbours_are_swapped_and_their_gap_stays() -> None:
    assert written(ChangeKind.WORDS_SWAPPED, "so  SO far\naway") == ["far SO", "away\nfar"]


@pytest.mark.parametrize(
    ("number", "tenfold"),
    [("3", "30"), ("0.5", "5"), ("0.05", "0.5"), ("2.50", "25.0"), ("100", "1000"), ("P1", "10")],
)
def test_a_number_grows_tenfold(number: str, tenfold: str) -> None:
    assert written(ChangeKind.NUMBER_TIMES_10, f"at {number}, then") == [tenfold]


def test_zero_grows_no_larger_but_may_be_replaced() -> None:
    assert places(ChangeKind.NUMBER_TIMES_10, "0 and 0.0") == []
    assert len(places(ChangeKind.NUMBER_REPLACED, "0 and 0.0")) == 2


def test_a_number_is_replaced_by_one_with_as_many_digits() -> None:
    for old, new in zip(["3", "0.5", "1", "2"], written(ChangeKind.NUMBER_REPLACED), strict=True):
        assert new != old
        assert new.replace(".", "").isdigit()
        assert [char == "." for char in new] == [char == "." for char in old]


def test_sentences_end_at_lines_and_points_but_not_after_a_number() -> None:
    assert removed(ChangeKind.SENTENCE_REPLACED) == [
        "Plan: 3 tests, 0.5 h each.",
        "1. Send the café menu.",
        "2. Send  it again, no later.",
    ]
    assert removed(ChangeKind.SENTENCE_REPLACED, "\n Go! Now? Yes\n\n") == ["Go!", "Now?", "Yes"]


def test_a_sentence_is_deleted_with_its_gap_and_never_the_only_one() -> None:
    deleted = [change.text for change in all_changes(ChangeKind.SENTENCE_DELETED, "Go! Now?\nYes")]
    assert deleted == ["Now?\nYes", "Go! Yes", "Go! Now?"]
    assert places(ChangeKind.SENTENCE_DELETED, "Only one.") == []


def test_an_ending_is_appended_once() -> None:
    (change,) = all_changes(ChangeKind.ENDING_APPENDED, TEXT)
    assert change.text.removeprefix(TEXT + " ") in changes.ENDINGS
    assert change.word == len(TEXT.split()) + 1


def test_a_text_is_cut_before_every_word_but_the_first() -> None:
    assert [change.text for change in all_changes(ChangeKind.TRUNCATED, "a b\n c")] == ["a", "a b"]


def test_a_text_is_cut_before_words_that_contain_end() -> None:
    cut = list(all_changes(ChangeKind.TRUNCATED_BEFORE_END, "Send it, then SEND the calendar"))
    assert [change.text for change in cut] == ["Send it, then", "Send it, then SEND the"]
    assert [change.word for change in cut] == [4, 6]


def test_only_commas_after_words_are_dropped() -> None:
    dropped = [change.text for change in all_changes(ChangeKind.COMMA_DROPPED, "1,000 a, b,")]
    assert dropped == ["1,000 a b,", "1,000 a, b"]


def test_harmless_changes_of_form() -> None:
    assert written(ChangeKind.CASE, "Go to 7") == ["gO", "TO"]
    assert written(ChangeKind.WHITE_SPACE, " a b\nc ") == ["  ", "\n "]
    assert written(ChangeKind.LINE_BREAK, " a b\nc ") == ["\n", " "]
    assert written(ChangeKind.UNICODE_FORM, "the café") == ["cafe\N{COMBINING ACUTE ACCENT}"]


def test_a_text_of_white_space_has_no_place_but_its_end() -> None:
    found = {kind for kind in ChangeKind if places(kind, " \n ")}
    assert found == {ChangeKind.ENDING_APPENDED}


def test_the_pool_of_replacements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_POOL", 3)
    monkeypatch.setattr(changes, "MAX_REPLACEMENT_LENGTH", 5)
    replacements = Replacements.of(["one ONE longer two", "three four five"])
    source = Random(0)
    drawn = {replacements.words.other_than("none of them", source) for _ in range(100)}
    assert drawn == {"one", "two", "three"}
