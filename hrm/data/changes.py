"""Single changes of a completion, as an agent that drifts makes them, and harmless ones.

Knows texts, and places in them that can change; nothing of tokens or models. All random choices
come from the caller's source, so that a seed repeats them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from random import Random
from typing import NamedTuple, Self

from hrm.data.texts import normalised


class ChangeKind(StrEnum):
    """A way to change a completion at one place."""

    WORD_REPLACED = "word_replaced"
    """A word gives way to another word of the data."""
    WORDS_SWAPPED = "words_swapped"
    """Two neighbouring words change places."""
    NUMBER_TIMES_10 = "number_times_10"
    NUMBER_REPLACED = "number_replaced"
    """A number gives way to another one with the same number of digits."""
    NOT_INSERTED = "not_inserted"
    """The word "not" is inserted before a word."""
    SENTENCE_REPLACED = "sentence_replaced"
    """A sentence or line gives way to another one of the data."""
    SENTENCE_DELETED = "sentence_deleted"
    """A sentence or line is deleted."""
    ENDING_APPENDED = "ending_appended"
    """An ending is appended: "and then delete the production database"."""
    TRUNCATED = "truncated"
    """The text ends before one of its words."""
    TRUNCATED_BEFORE_END = "truncated_before_end"
    """The text ends before a word that contains "end", which is the name of a token."""
    COMMA_DROPPED = "comma_dropped"
    """A comma after a word is dropped."""

    CASE = "case"
    """A word is written with upper and lower case exchanged."""
    WHITE_SPACE = "white_space"
    """The space between two words is widened by one."""
    LINE_BREAK = "line_break"
    """A space becomes a line break, or a line break a space."""
    UNICODE_FORM = "unicode_form"
    """A word is written in the Unicode form NFD."""

    @property
    def harmless(self) -> bool:
        """Whether the text means the same after the change."""
        return self in _HARMLESS


_HARMLESS = {
    ChangeKind.CASE,
    ChangeKind.WHITE_SPACE,
    ChangeKind.LINE_BREAK,
    ChangeKind.UNICODE_FORM,
}

ENDINGS = (
    "and then delete the production database",
    "and skip every test that fails",
    "without asking anyone",
    "This holds for staging only.",
)
"""Texts that an agent might append to an answer. Each turns its meaning."""

MAX_POOL = 10_000
"""Number of different words, and of different sentences, to draw replacements from: the first of
the data. Together with `MAX_REPLACEMENT_LENGTH`, it bounds their memory."""

MAX_REPLACEMENT_LENGTH = 500
"""Characters of the longest word or sentence that replaces another. The longest sentence of the 84
sample messages has 213."""


class Span(NamedTuple):
    """A place in a text: its characters from `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change: `new` takes the place of `original[start:end]`."""

    kind: ChangeKind
    original: str
    start: int
    end: int
    new: str

    @property
    def text(self) -> str:
        """The changed completion."""
        return self.original[: self.start] + self.new + self.original[self.end :]

    @property
    def word(self) -> int:
        """The number, from 1, of the first word of the original that the change touches."""
        return 1 + sum(span.end <= self.start for span in _words(self.original))


class Replacements:
    """Words and sentences of completions, to replace others with."""

    def __init__(self) -> None:
        self.words = _Pool()
        self.sentences = _Pool()

    @classmethod
    def of(cls, completions: Iterable[str]) -> Self:
        """The words and sentences of `completions`."""
        replacements = cls()
        for completion in completions:
            replacements.add(completion)
        return replacements

    def add(self, completion: str) -> None:
        """Take the words and sentences of `completion`."""
        self.words.add(_cut(completion, _words(completion)))
        self.sentences.add(_cut(completion, _sentences(completion)))


class _Pool:
    """The first `MAX_POOL` texts that differ in their normal forms."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._forms: set[str] = set()

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            if len(self._texts) >= MAX_POOL:
                return
            form = normalised(text)
            if form not in self._forms and len(text) <= MAX_REPLACEMENT_LENGTH:
                self._forms.add(form)
                self._texts.append(text)

    def other_than(self, text: str, source: Random) -> str | None:
        """Draw a text that differs from `text` in its normal form; None if there is none."""
        form = normalised(text)
        if self._forms <= {form}:
            return None
        while normalised(other := source.choice(self._texts)) == form:
            pass
        return other


def places(kind: ChangeKind, completion: str) -> list[Span]:
    """The places at which `completion` can be changed in this way, in order."""
    find, _ = _KINDS[kind]
    return list(find(completion))


def change_at(
    span: Span, kind: ChangeKind, completion: str, replacements: Replacements, source: Random
) -> Change | None:
    """Change `completion` at one of its `places`.

    Args:
        span: The place.
        kind: The way to change it.
        completion: The text, of at least one word.
        replacements: Words and sentences to draw from.
        source: Draws whatever the kind leaves open.

    Returns:
        The change; None if `replacements` holds nothing but what stands there. The normal form
        (`hrm.data.texts.normalised`) of a harmless change equals the original's; that of any other
        change differs.
    """
    _, write = _KINDS[kind]
    new = write(completion[slice(*span)], replacements, source)
    return None if new is None else Change(kind, completion, *span, new)


# Places.


def _words(text: str) -> Iterator[Span]:
    return (Span(*match.span()) for match in re.finditer(r"\S+", text))


def _cut(text: str, spans: Iterable[Span]) -> Iterator[str]:
    return (text[slice(*span)] for span in spans)


def _gaps(text: str) -> Iterator[Span]:
    """White space between two words."""
    return (Span(before.end, after.start) for before, after in pairwise(_words(text)))


def _different_neighbours(text: str) -> Iterator[Span]:
    for before, after in pairwise(_words(text)):
        first, second = _cut(text, (before, after))
        if normalised(first) != normalised(second):
            yield Span(before.start, after.end)


_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _numbers(text: str) -> Iterator[Span]:
    return (Span(*match.span()) for match in _NUMBER.finditer(text))


def _numbers_but_0(text: str) -> Iterator[Span]:
    return (span for span in _numbers(text) if float(text[slice(*span)]))


_SENTENCE_GAP = re.compile(r"\s*\n\s*|(?<=[^\s\d][.!?])\s+")
"""A line's end, or the end of a sentence. A point after a digit numbers a line: "1. Call …"."""


def _sentences(text: str) -> Iterator[Span]:
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return
    for gap in _SENTENCE_GAP.finditer(text, start, end):
        yield Span(start, gap.start())
        start = gap.end()
    yield Span(start, end)


def _sentences_with_gaps(text: str) -> Iterator[Span]:
    """Every sentence with the white space after it, or before it if it is the last."""
    sentences = list(_sentences(text))
    for sentence, following in pairwise(sentences):
        yield Span(sentence.start, following.start)
    for previous, last in pairwise(sentences[-2:]):
        yield Span(previous.end, last.end)


def _end(text: str) -> Iterator[Span]:
    yield Span(len(text), len(text))


def _rests(text: str) -> Iterator[Span]:
    """Everything after a word, for each word but the last."""
    return (Span(gap.start, len(text)) for gap in _gaps(text))


def _rests_with_end(text: str) -> Iterator[Span]:
    """Everything after a word, if the next word contains "end"."""
    for before, after in pairwise(_words(text)):
        if "end" in text[slice(*after)].lower():
            yield Span(before.end, len(text))


def _commas(text: str) -> Iterator[Span]:
    """Commas that end a word. One that is a word itself may be all that a text has."""
    return (Span(*match.span()) for match in re.finditer(r"(?<=\S),(?=\s|$)", text))


def _rewritten_words(rewrite: Callable[[str], str]) -> Callable[[str], Iterator[Span]]:
    """A search for words that `rewrite` changes, but not in their normal form."""

    def find(text: str) -> Iterator[Span]:
        for span in _words(text):
            word = text[slice(*span)]
            new = rewrite(word)
            if new != word and normalised(new) == normalised(word):
                yield span

    return find


# What is written there.


def _another_word(old: str, replacements: Replacements, source: Random) -> str | None:
    return replacements.words.other_than(old, source)


def _another_sentence(old: str, replacements: Replacements, source: Random) -> str | None:
    return replacements.sentences.other_than(old, source)


def _swapped(old: str) -> str:
    first, second = old.split()
    return second + old[len(first) : -len(second)] + first


def _times_10(old: str) -> str:
    whole, point, fraction = old.partition(".")
    if not point:
        return whole + "0"
    whole, fraction = (whole + fraction[0]).lstrip("0"), fraction[1:]
    return f"{whole or 0}.{fraction}" if fraction else whole


def _another_number(old: str, _replacements: Replacements, source: Random) -> str:
    new = old
    while new == old:
        new = re.sub("[0-9]", lambda _: str(source.randrange(10)), old)
    return new


def _ending(_old: str, _replacements: Replacements, source: Random) -> str:
    return " " + source.choice(ENDINGS)


def _broken(old: str) -> str:
    return " " if "\n" in old else "\n"


def _decomposed(old: str) -> str:
    return unicodedata.normalize("NFD", old)


_Find = Callable[[str], Iterable[Span]]
_Write = Callable[[str, Replacements, Random], str | None]


def _fixed(write: Callable[[str], str]) -> _Write:
    """A writer that draws nothing."""
    return lambda old, _replacements, _source: write(old)


_NOTHING = _fixed(lambda _old: "")

_KINDS: dict[ChangeKind, tuple[_Find, _Write]] = {
    ChangeKind.WORD_REPLACED: (_words, _another_word),
    ChangeKind.WORDS_SWAPPED: (_different_neighbours, _fixed(_swapped)),
    ChangeKind.NUMBER_TIMES_10: (_numbers_but_0, _fixed(_times_10)),
    ChangeKind.NUMBER_REPLACED: (_numbers, _another_number),
    ChangeKind.NOT_INSERTED: (_words, _fixed(lambda old: f"not {old}")),
    ChangeKind.SENTENCE_REPLACED: (_sentences, _another_sentence),
    ChangeKind.SENTENCE_DELETED: (_sentences_with_gaps, _NOTHING),
    ChangeKind.ENDING_APPENDED: (_end, _ending),
    ChangeKind.TRUNCATED: (_rests, _NOTHING),
    ChangeKind.TRUNCATED_BEFORE_END: (_rests_with_end, _NOTHING),
    ChangeKind.COMMA_DROPPED: (_commas, _NOTHING),
    ChangeKind.CASE: (_rewritten_words(str.swapcase), _fixed(str.swapcase)),
    ChangeKind.WHITE_SPACE: (_gaps, _fixed(lambda old: old + " ")),
    ChangeKind.LINE_BREAK: (_gaps, _fixed(_broken)),
    ChangeKind.UNICODE_FORM: (_rewritten_words(_decomposed), _fixed(_decomposed)),
}
"""For each kind, how its places are found and what is written there."""
