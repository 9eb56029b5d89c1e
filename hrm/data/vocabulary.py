"""Words to tokens: the 12-entry vocabulary, and the rule for words that are not in it.

Knows single texts and their token sequences; nothing of messages or puzzle ids, which
`hrm.data.conversion` knows.
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
"""The name of every token. Its position is the token's id."""

START = VOCABULARY.index("start")
"""The first token of every sequence."""

END = VOCABULARY.index("end")
"""The last token of every sequence."""

_DECIMALS = tuple(str(token) for token in range(len(VOCABULARY)))
_TOKENS = {decimal: token for token, decimal in enumerate(_DECIMALS)}

MAX_WORDS = MAX_SEQUENCE_LENGTH - 2
"""Words that a sequence holds between start and end. Later words are cut."""

HASHED_TOKENS = 9
"""Words without an entry share tokens 1 to 9; they never become start, monitoring or end."""

MAX_CACHED_WORDS = 65_536
"""Limit of the word cache. The words in daily use of a language fit. New identifiers and numbers
never stop coming, and must not fill the memory of a process that runs for months."""

MAX_CACHED_WORD_LENGTH = 64
"""Characters of the longest word that is cached. Longer words are rare and seldom repeat, and one
message may be a single word of 256 KiB. Both limits together keep the cache under 30 MB, whatever
the words are."""


_DIGESTS = {WordHash.MD5: hashlib.md5, WordHash.SHA256: hashlib.sha256}


class _TokenCache(dict[str, str]):
    """Lower-case words mapped to their tokens, in decimal as files hold them.

    A dict subclass, because a word seen before then costs one look-up in C.
    """

    def __init__(self, word_hash: WordHash) -> None:
        super().__init__()
        self._digest = _DIGESTS[word_hash]

    def __missing__(self, word: str) -> str:
        token = self._compute(word)
        if len(word) <= MAX_CACHED_WORD_LENGTH:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()  # common words return at once; tracking their use would slow every hit
            self[word] = token
        return token

    def _compute(self, word: str) -> str:
        for token, name in enumerate(VOCABULARY):
            if name in word:
                return _DECIMALS[token]
        digest = self._digest(word.encode(), usedforsecurity=False).digest()
        return _DECIMALS[int.from_bytes(digest, "big") % HASHED_TOKENS + 1]


class Tokenizer:
    """Turns texts into token sequences. Threads may share one."""

    def __init__(self, word_hash: WordHash = WordHash.MD5) -> None:
        self._lookup = _TokenCache(word_hash).__getitem__

    def token(self, word: str) -> int:
        """The token (0 to 11) of one word; upper and lower case make no difference.

        The word's token is the first vocabulary entry that occurs in it. If none does, its digest
        chooses one from 1 to 9.
        """
        return int(self._lookup(word.lower()))

    def sequence(self, text: str) -> list[int]:
        """The start token, the tokens of the first 98 words, and the end token: 2 to 100 tokens."""
        return [_TOKENS[decimal] for decimal in self.decimals(text)]

    def decimals(self, text: str) -> list[str]:
        """The tokens of `sequence` in decimal, for converting files: faster than integers."""
        words = _split(text.lower())[:MAX_WORDS]
        return [_DECIMALS[START], *map(self._lookup, words), _DECIMALS[END]]


def unread_words(text: str) -> int:
    """The number of words in `text` beyond those that its sequence holds."""
    rest = _split(text)[MAX_WORDS:]
    return len(rest[0].split()) if rest else 0


def _split(text: str) -> list[str]:
    """The first 98 words and, if there are more, the rest in one piece.

    A long text is therefore not split into words that are never read.
    """
    return text.split(None, MAX_WORDS)
