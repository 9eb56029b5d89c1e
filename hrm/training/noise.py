"""Noise on prompts: varied prompts that keep their target, and foreign ones that lose it.

Knows examples as tensors, and puzzles; nothing of texts or networks. A varied prompt is what the
conversion makes of a prompt with a few changed words: a word is a token, so tokens are dropped,
replaced, inserted and swapped. A network that is trained on them takes them for the accepted
prompt.

With variations alone, a network learns that the puzzle decides, and answers any prompt under it. So
some draws give a puzzle a *foreign* prompt, one that was never accepted for it. Its target is the
end token at every position. No completion has that target, because none begins with an end: a
network that gives it has said that it does not know the prompt, and the message is not solved. So
the Q head learns that nothing is solved here, however well the network refuses.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from hrm.data.variations import Words, allowed, distance, standing_alone
from hrm.data.vocabulary import PART_WORDS, Vocabulary
from hrm.model.batch import Batch
from hrm.model.config import PADDING_TOKEN

FOREIGN_MARGIN = 2
"""A foreign prompt differs in more than this many words more than a variation. What is between the
two is neither: there the network decides by itself."""

ANY_WORD_SHARE = 0.5
"""Share of new words that may be any; the others are words of accepted prompts. A name or a number
is any word, a politeness may be a word that other prompts have."""

EXACT_SHARE = 0.1
"""Share of prompts that stay exact. They are learned sooner than any variation."""

FOREIGN_SHARES = (0.6, 0.2)
"""Shares of foreign prompts that are another accepted one, and that are one's own with half of its
words or more replaced. The rest are words drawn one by one."""


def varied(words: Words, changes: int, new_word: "NewWords", source: Random) -> Words:
    """Change up to `changes` words: drop, replace or insert one, or swap two neighbours."""
    changed = list(words)
    for _ in range(changes):
        place = source.randrange(len(changed) + 1)
        kind = source.choice(("drop", "replace", "insert", "swap"))
        if kind == "insert" or place == len(changed):
            changed.insert(place, new_word(source))
        elif kind == "replace":
            changed[place] = new_word(source)
        elif kind == "swap":
            changed[place : place + 2] = reversed(changed[place : place + 2])
        elif len(changed) > 1:
            del changed[place]
    return tuple(changed[:PART_WORDS])


@dataclass(frozen=True)
class NewWords:
    """Draws tokens of words that take the place of others."""

    seen: Sequence[int]
    """The tokens of accepted prompts, each as often as it occurs."""
    every: range
    """All tokens that a word may have."""

    def __call__(self, source: Random) -> int:
        """Draw one."""
        if not self.seen or source.random() < ANY_WORD_SHARE:
            return source.choice(self.every)
        return source.choice(self.seen)


class PromptNoise:
    """Draws examples with varied and foreign prompts from examples with exact ones.

    Args:
        examples: All training examples, on any device.
        vocabulary: The tokens of the conversion.
        changes: Most words of a prompt that are changed.
        foreign_share: Share of draws with a foreign prompt.
    """

    def __init__(
        self, examples: Batch, vocabulary: Vocabulary, *, changes: int, foreign_share: float
    ) -> None:
        self._vocabulary = vocabulary
        self._changes = changes
        self._foreign_share = foreign_share
        self._words = [_words_of(each, vocabulary.end) for each in examples.inputs.tolist()]
        self._puzzles = examples.puzzle_ids.tolist()
        prompts = list(zip(self._puzzles, self._words, strict=True))
        alone = standing_alone(prompts, changes)
        self._is_varied = [prompt in alone for prompt in prompts]
        self._prompts = list(dict.fromkeys(prompts))
        self._by_puzzle: defaultdict[int, list[Words]] = defaultdict(list)
        for puzzle, words in self._prompts:
            self._by_puzzle[puzzle].append(words)
        seen = [token for _, words in self._prompts for token in words]
        self._new_word = NewWords(seen, vocabulary.words)

    def draw(self, rows: Sequence[int], drawn: Batch, source: Random) -> Batch:
        """The examples `rows`, which are `drawn`, with noise on their prompts.

        Args:
            rows: Numbers of the examples.
            drawn: The examples themselves.
            source: Draws all that is random.
        """
        inputs, labels = drawn.inputs.clone(), drawn.labels.clone()
        for place, row in enumerate(rows):
            if source.random() < self._foreign_share:
                words = self._foreign(row, source)
                if words is None:
                    continue
                labels[place] = self._vocabulary.end
            elif self._is_varied[row]:
                words = self._varied(self._words[row], source)
            else:
                continue
            inputs[place] = self._padded(int(inputs[place, 0]), words, inputs)
        return Batch(inputs, labels, drawn.puzzle_ids)

    def _foreign(self, row: int, source: Random) -> Words | None:
        """Words that are far from all prompts of the puzzle of `row`; None if none were found."""
        own, kind = self._words[row], source.random()
        if kind < FOREIGN_SHARES[0]:
            _, words = source.choice(self._prompts)
            words = self._varied(words, source)
        elif kind < sum(FOREIGN_SHARES):
            kept = source.uniform(0, 0.5)
            words = tuple(
                word if source.random() < kept else self._new_word(source) for word in own
            )
        else:
            length = source.randint(1, max(2, 2 * len(own)))
            words = tuple(self._new_word(source) for _ in range(min(length, PART_WORDS)))
        for accepted in self._by_puzzle[self._puzzles[row]]:
            limit = allowed(accepted, self._changes) + FOREIGN_MARGIN
            if distance(words, accepted, limit) <= limit:
                return None
        return words

    def refused(self, labels: Tensor) -> Tensor:
        """Which rows have a foreign prompt: bool (B,) of labels (B, S)."""
        # The last part of a completion may be an end alone, with nothing after it.
        return labels[:, :2].eq(self._vocabulary.end).all(-1)

    def _varied(self, words: Words, source: Random) -> Words:
        most = allowed(words, self._changes)
        if not most or source.random() < EXACT_SHARE:
            return words
        return varied(words, source.randint(1, most), self._new_word, source)

    def _padded(self, first: int, words: Words, like: Tensor) -> Tensor:
        tokens = [first, *words, self._vocabulary.end][: like.shape[1]]
        tokens += [PADDING_TOKEN] * (like.shape[1] - len(tokens))
        return torch.tensor(tokens, dtype=like.dtype, device=like.device)


def _words_of(tokens: Sequence[int], end: int) -> Words:
    """The tokens between the first and the last end; padding comes after it."""
    last = len(tokens) - 1 - tokens[::-1].index(end)
    return tuple(tokens[1:last])
