"""Words to tokens: the two vocabularies, and the rules for words that are not in them.

Knows single texts and their token sequences; nothing of messages, puzzle ids or parts, which
`hrm.data.conversion` knows.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hrm.data.config import ConversionConfig, WordHash
from schemas import MAX_SEQUENCE_LENGTH, MAX_TARGET_LENGTH

T = TypeVar("T")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a conversion: those with a name, and after them those that words share."""

    names: tuple[str, ...]
    """The name of each token with a meaning of its own. Its position is the token's id."""
    start: int
    """The first token of every sequence."""
    end: int
    """The last token of every sequence."""
    hashed: int = 0
    """Tokens after the named ones, each shared by the words of one hash."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.names) + self.hashed

    @property
    def words(self) -> range:
        """The tokens of words alone, which are neither a start nor an end."""
        return range(self.end + 1, self.size) if self.hashed else range(self.start + 1, self.end)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names for tables: the named tokens, and all hashed ones as one."""
        return (*self.names, HASHED) if self.hashed else self.names

    @property
    def token_names(self) -> tuple[str, ...]:
        """The name of each token; hashed ones share one."""
        return (*self.names, *(HASHED,) * self.hashed)

    def group(self, token: int) -> int:
        """The position of a token's name in `groups`."""
        return min(token, len(self.names))

    def group_names(self, target: int, predicted: int) -> tuple[str, str]:
        """The names of two tokens, `OTHER_HASHED` for a hashed one in place of another."""
        names = self.groups
        if target != predicted and self.group(target) == self.group(predicted):
            return HASHED, OTHER_HASHED
        return names[self.group(target)], names[self.group(predicted)]


HASHED = "hashed"
"""Name of all hashed tokens together."""

OTHER_HASHED = "another hashed"
"""Name of a prediction that is a hashed token, but not the target's."""

NAMED_WORDS = (
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
)
"""The words with a token of their own."""

VOCABULARY_1 = Vocabulary(("start", *NAMED_WORDS, "end"), start=0, end=len(NAMED_WORDS) + 1)
"""Conversion 1: start and end are words as well."""

RESERVED = ("padding", "start", "end")
"""Tokens of conversion 2 that no word has."""

PART_WORDS = MAX_SEQUENCE_LENGTH - 2
"""Words that one sequence holds between start and end."""

HASHED_TOKENS_1 = 9
"""Conversion 1: words without an entry share tokens 1 to 9; they never become start, monitoring or
end."""

MAX_CACHED_WORDS = 65_536
"""Limit of the word cache. The words in daily use of a language fit. New identifiers and numbers
never stop coming, and must not fill the memory of a process that runs for months."""

MAX_CACHED_WORD_LENGTH = 64
"""Characters of the longest word that is cached. Longer words are rare and seldom repeat, and one
message may be a single word of 256 KiB. Both limits together keep the cache under 30 MB, whatever
the words are."""

_DIGESTS = {WordHash.MD5: hashlib.md5, WordHash.SHA256: hashlib.sha256}


def vocabulary_of(config: ConversionConfig) -> Vocabulary:
    """The vocabulary of a conversion."""
    if config.version == 1:
        return VOCABULARY_1
    names = (*RESERVED, *NAMED_WORDS)
    return Vocabulary(
        names, start=names.index("start"), end=names.index("end"), hashed=config.hashed_tokens
    )


class _TokenCache(dict[str, T]):
    """Words mapped to their tokens by `rule`.

    A dict subclass, because a word seen before then costs one look-up in C.
    """

    def __init__(self, rule: Callable[[str], T]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, word: str) -> T:
        token = self._rule(word)
        if len(word) <= MAX_CACHED_WORD_LENGTH:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()  # common words return at once; tracking their use would slow every hit
            self[word] = token
        return token


def _rule_1(word_hash: WordHash) -> Callable[[str], int]:
    """Conversion 1: the first entry that occurs in a lower-case word, otherwise its digest's."""

    def token_of(word: str) -> int:
        for token, name in enumerate(VOCABULARY_1.names):
            if name in word:
                return token
        return _digest(word, word_hash) % HASHED_TOKENS_1 + 1

    return token_of


def _rule_2(word_hash: WordHash, vocabulary: Vocabulary) -> Callable[[str], int]:
    """Conversion 2: the entry that equals a word, otherwise the hashed token of its digest."""
    named = {word: vocabulary.names.index(word) for word in NAMED_WORDS}
    first_hashed = len(vocabulary.names)

    def token_of(word: str) -> int:
        token = named.get(word)
        if token is None:
            token = first_hashed + _digest(word, word_hash) % vocabulary.hashed
        return token

    return token_of


def _digest(word: str, word_hash: WordHash) -> int:
    digest = _DIGESTS[word_hash](word.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big")


class Tokenizer:
    """Turns texts into token sequences by one conversion. Threads may share a tokenizer."""

    def __init__(self, config: ConversionConfig | None = None) -> None:
        config = config or ConversionConfig()
        self.vocabulary = vocabulary = vocabulary_of(config)
        self.max_target_words = PART_WORDS if config.version == 1 else MAX_TARGET_LENGTH - 2
        """Words of a completion that its sequence holds. Later words are cut."""
        rule = (
            _rule_1(config.word_hash)
            if config.version == 1
            else _rule_2(config.word_hash, vocabulary)
        )
        self._token_of = _TokenCache(rule).__getitem__
        self._decimal_of = _TokenCache(lambda word: str(rule(word))).__getitem__
        self._start, self._end = str(vocabulary.start), str(vocabulary.end)
        self._fold: Callable[[str], str] = str.lower
        if config.version != 1:
            self._fold = _composed if config.case_sensitive else _composed_and_folded

    def token(self, word: str) -> int:
        """The token of one word."""
        return self._token_of(self._fold(word))

    def sequence(self, text: str, max_words: int = PART_WORDS) -> list[int]:
        """The start token, the tokens of the first words of `text`, and the end token."""
        words = map(self._token_of, self._words(text, max_words))
        return [self.vocabulary.start, *words, self.vocabulary.end]

    def target(self, text: str) -> list[int]:
        """The sequence of a completion."""
        return self.sequence(text, self.max_target_words)

    def decimals(self, text: str, max_words: int = PART_WORDS) -> list[str]:
        """The tokens of `sequence` in decimal, for converting files: faster than integers."""
        return [self._start, *map(self._decimal_of, self._words(text, max_words)), self._end]

    def _words(self, text: str, most: int) -> list[str]:
        # The rest of a long text is not split into words that are never read.
        return self._fold(text).split(None, most)[:most]


def unread_words(text: str, sequence: Sequence[int]) -> int:
    """The number of words in `text` beyond those in `sequence`, which was made from it."""
    read = len(sequence) - 2
    if read < PART_WORDS:
        return 0  # shorter than any sequence that was cut
    rest = text.split(None, read)[read:]
    return len(rest[0].split()) if rest else 0


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _composed_and_folded(text: str) -> str:
    # Folding can leave the form that composing gave, as in `hrm.data.texts.normalised`.
    return _composed(_composed(text).casefold())
