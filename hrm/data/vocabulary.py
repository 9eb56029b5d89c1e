"""Words to tokens: the 12-entry vocabulary, and what becomes of words that are not in it.

Knows single texts and their token sequences. Knows neither messages nor puzzle ids
(`hrm.data.conversion`).
"""

import hashlib

from hrm.data.config import WordHash
from schemas import MAX_SEQUENCE_LENGTH

VOCABULARY = (
    "start",
    "test",
    "agent",
    "data",
    "security",
    "performance",
    "integration",
    "automation",
    "validation",
    "deployment",
    "monitoring",
    "end",
)
"""The name of every token; its place is its id."""

START = VOCABULARY.index("start")
"""First token of every sequence."""

END = VOCABULARY.index("end")
"""Last token of every sequence."""

_DECIMALS = tuple(str(token) for token in range(len(VOCABULARY)))
_TOKENS = {decimal: token for token, decimal in enumerate(_DECIMALS)}

MAX_WORDS = MAX_SEQUENCE_LENGTH - 2
"""Words that a sequence holds between start and end; later ones are cut."""

HASHED_TOKENS = 9
"""A word without an entry gets one of tokens 1 to 9: never start, monitoring or end."""

MAX_CACHED_WORDS = 65_536
"""Bound of the word cache. The words of a language in daily use fit; identifiers and numbers never
run out, and must not fill the memory of a process that runs for months."""

MAX_CACHED_WORD_LENGTH = 64
"""In characters. Longer words are rare and seldom repeat, and one message may be a single word of
256 KiB: with both bounds the cache stays under 30 MB, whatever the words are."""


_DIGESTS = {WordHash.MD5: hashlib.md5, WordHash.SHA256: hashlib.sha256}


class _TokenCache(dict[str, str]):
    """Lower-case word -> its token in decimal, as files hold it.

    A dict, so that a word seen before costs one look-up in C.
    """

    def __init__(self, word_hash: WordHash) -> None:
        super().__init__()
        self._digest = _DIGESTS[word_hash]

    def __missing__(self, word: str) -> str:
        token = self._compute(word)
        if len(word) <= MAX_CACHED_WORD_LENGTH:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()  # common words are back at once; an order of use would cost every hit
            self[word] = token
        return token

    def _compute(self, word: str) -> str:
        for token, name in enumerate(VOCABULARY):
            if name in word:
                return _DECIMALS[token]
        digest = self._digest(word.encode(), usedforsecurity=False).digest()
        return _DECIMALS[int.from_bytes(digest, "big") % HASHED_TOKENS + 1]


class Tokenizer:
    """Gives texts their token sequences. Threads may share one."""

    def __init__(self, word_hash: WordHash = WordHash.MD5) -> None:
        self._lookup = _TokenCache(word_hash).__getitem__

    def token(self, word: str) -> int:
        """The token (0 to 11) of one word, in any case.

        The first vocabulary entry that occurs in the word, else 1 to 9 by the word's digest.
        """
        return int(self._lookup(word.lower()))

    def sequence(self, text: str) -> list[int]:
        """Start, the tokens of the first 98 words, end: 2 to 100 tokens."""
        return [_TOKENS[decimal] for decimal in self.decimals(text)]

    def decimals(self, text: str) -> list[str]:
        """`sequence`, each token in decimal: what converting files needs, and faster."""
        words = _split(text.lower())[:MAX_WORDS]
        return [_DECIMALS[START], *map(self._lookup, words), _DECIMALS[END]]


def is_cut(text: str) -> bool:
    """Whether `text` has more words than its sequence holds."""
    return len(_split(text)) > MAX_WORDS


def _split(text: str) -> list[str]:
    """The first 98 words and, where there are more, the rest as one piece.

    So a long text is not split into words that nobody reads.
    """
    return text.split(None, MAX_WORDS)
