"""Tasks that nobody named, found in accepted prompts: what many of them have in common.

Knows prompts as tokens, a word being a token; nothing of texts, models or files. A template is the
words that all prompts of a task have, in order; what stands between them are its slots. Log
messages are mined for templates in the same way (Drain and its successors), but those compare words
at equal positions, and a slot of two words moves all that follow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

from hrm.data.variations import Words

COMMON_SHARE = 0.5
"""Least share of a prompt's words that its template has. With less, a template of "the" and "of"
would be that of everything."""


def common_words(one: Words, other: Words) -> Words:
    """The longest sequence of words that both have in this order."""
    return tuple(
        word
        for block in LCSseq.opcodes(one, other)
        if block.tag == "equal"
        for word in one[block.src_start : block.src_end]
    )


def fits(template: Words, prompt: Sequence[int]) -> bool:
    """Whether `prompt` has all words of `template` in order, and not many others."""
    if len(template) < COMMON_SHARE * len(prompt):
        return False
    words = iter(prompt)
    return all(word in words for word in template)


MAX_PROMPTS = 5_000
"""Different prompts among which templates are found: the first. If no two of them have anything in
common, finding that out takes ten seconds."""


class Template(NamedTuple):
    """The words that prompts have in common."""

    words: Words
    prompts: int
    """The number of different prompts it was found in."""
    first: Words
    """The first of them."""

    @property
    def slots(self) -> list[int | None]:
        """The words of the first prompt, and None in place of those that are not common."""
        words = iter((*self.words, None))
        common = next(words)
        slots: list[int | None] = []
        for word in self.first:
            slots.append(word if word == common else None)
            if word == common:
                common = next(words)
        return slots


def find_templates(prompts: Iterable[Words], least: int) -> list[Template]:
    """The templates of at least `least` different prompts each, those of most prompts first.

    A prompt joins the group with which it has most words in common, and the group's template
    becomes what is then common to all. It stays above `COMMON_SHARE` of each of its prompts.
    """
    groups: list[_Group] = []
    for prompt in islice(_unique(prompts), MAX_PROMPTS):
        group = _nearest(groups, prompt)
        if group is None:
            groups.append(_Group(prompt))
        else:
            group.add(prompt)
    found = [
        Template(each.template, each.prompts, each.first)
        for each in groups
        if each.prompts >= least
    ]
    return sorted(found, key=lambda each: -each.prompts)


def _unique(prompts: Iterable[Words]) -> Iterator[Words]:
    """Each prompt once, in order."""
    seen = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


@dataclass
class _Group:
    first: Words
    prompts: int = 1

    def __post_init__(self) -> None:
        self.template = self.first
        self.longest = len(self.first)

    def add(self, prompt: Words) -> None:
        self.template = common_words(self.template, prompt)
        self.longest = max(self.longest, len(prompt))
        self.prompts += 1


def _nearest(groups: Sequence[_Group], prompt: Words) -> _Group | None:
    """The group that `prompt` can join; of several, that with most words in common."""
    found: _Group | None = None
    most = 0
    for group in groups:
        least = max(most + 1, COMMON_SHARE * max(len(prompt), group.longest))
        common = LCSseq.similarity(group.template, prompt)
        if common >= least:
            found, most = group, common
    return found
