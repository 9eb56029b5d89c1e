"""Variations of accepted prompts: how many words were changed, and which prompts allow any.

Knows prompts as tokens, a word being a token; nothing of texts, models or files.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import DamerauLevenshtein

Words = tuple[int, ...]
"""The tokens of a prompt without the first, which may name a part, and without the end."""


def distance(one: Sequence[int], other: Sequence[int], limit: int | None = None) -> int:
    """The number of words that were dropped, replaced, inserted or swapped with their neighbour.

    A number above `limit` is only known to be above it.
    """
    return DamerauLevenshtein.distance(one, other, score_cutoff=limit)


def allowed(words: Sequence[int], changes: int) -> int:
    """Most words of a prompt that may change: `changes`, but at most two fifths of its words."""
    return min(changes, 2 * len(words) // 5)


def standing_alone(prompts: Iterable[tuple[int, Words]], changes: int) -> set[tuple[int, Words]]:
    """The prompts that can be told from all others of their puzzle with words changed in both.

    A puzzle whose prompts differ in few words is a task: there, a changed word may ask for another
    answer.

    Args:
        prompts: Puzzle and words of each prompt.
        changes: Most words that are changed (`allowed`).

    Returns:
        The prompts of which no variation can be that of another prompt of their puzzle. Prompts too
        short to change are not among them.
    """
    puzzles: defaultdict[int, set[Words]] = defaultdict(set)
    for puzzle, words in prompts:
        puzzles[puzzle].add(words)
    return {
        (puzzle, words)
        for puzzle, found in puzzles.items()
        for words in found
        if allowed(words, changes)
        and all(other == words or are_apart(words, other, changes) for other in found)
    }


def are_apart(one: Words, other: Words, changes: int) -> bool:
    """Whether no variation of one prompt can be that of another."""
    limit = allowed(one, changes) + allowed(other, changes)
    return distance(one, other, limit) > limit
