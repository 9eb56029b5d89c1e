"""`hrm.data.vocabulary` follows the rules of the contract."""

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.data import vocabulary
from hrm.data.config import ConversionConfig, WordHash
from hrm.data.vocabulary import VOCABULARY_1, Tokenizer, unread_words

NAMES = [
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
]

TEXTS = st.lists(
    st.sampled_from(NAMES)
    | st.text(max_size=8)
    | st.sampled_from(["Restart", "TESTDATA", "İ", "ẞ"])
).map(" ".join)


def plain_token(word: str, digest: str) -> int:
    for token, name in enumerate(NAMES):
        if name in word:
            return token
    return int(hashlib.new(digest, word.encode()).hexdigest(), 16) % 9 + 1


def plain_sequence(text: str, digest: str) -> list[int]:
    return [0, *[plain_token(word, digest) for word in text.lower().split()[:98]], 11]


def test_the_vocabulary_equals_that_of_the_contract() -> None:
    assert list(VOCABULARY_1.names) == NAMES


@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("start", 0),
        ("restart", 0),
        ("Restarted,", 0),
        ("testdata", 1),
        ("datatest", 1),
        ("multi-agent", 2),
        ("database", 3),
        ("security:", 4),
        ("performance/security", 4),
        ("PERFORMANCE", 5),
        ("integrations", 6),
        ("automation", 7),
        ("validation_agent", 2),
        ("pre-deployment", 9),
        ("monitoring", 10),
        ("end-to-end", 11),
        ("dependency", 11),
        ("backend-agent", 2),
    ],
)
def test_the_first_entry_that_occurs_in_a_word_gives_its_token(word: str, token: int) -> None:
    assert Tokenizer().token(word) == token


# The digests were computed with md5sum and sha256sum.
@pytest.mark.parametrize(
    ("word_hash", "word", "hexdigest"),
    [
        (WordHash.MD5, "hello", "5d41402abc4b2a76b9719d911017c592"),
        (WordHash.MD5, "plan", "5fc25157650d0cb24f02216d904584df"),
        (
            WordHash.SHA256,
            "hello",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ),
    ],
)
def test_a_word_without_an_entry_gets_its_digest_modulo_nine_plus_one(
    word_hash: WordHash, word: str, hexdigest: str
) -> None:
    # 16 is 7 modulo 9, so the remainder is taken digit by digit, without big numbers.
    remainder = 0
    for digit in hexdigest:
        remainder = (remainder * 7 + string.hexdigits.index(digit)) % 9
    assert Tokenizer(ConversionConfig(word_hash=word_hash)).token(word) == remainder + 1


def test_a_sequence_is_the_start_the_words_and_the_end() -> None:
    assert Tokenizer().sequence("Restart  the\tTestData\nEND-to-end") == [
        0,
        0,
        Tokenizer().token("the"),
        1,
        11,
        11,
    ]


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_without_words_is_only_the_start_and_the_end(text: str) -> None:
    assert Tokenizer().sequence(text) == [0, 11]


@pytest.mark.parametrize(
    ("words", "length", "unread"),
    [(0, 2, 0), (97, 99, 0), (98, 100, 0), (99, 100, 1), (300, 100, 202)],
)
def test_words_after_the_98th_are_not_read(words: int, length: int, unread: int) -> None:
    text = "\n data " * words
    assert Tokenizer().sequence(text) == [0, *[3] * (length - 2), 11]
    assert unread_words(text, Tokenizer().sequence(text)) == unread


@given(TEXTS, st.sampled_from(WordHash))
def test_a_sequence_equals_the_plain_rules(text: str, word_hash: WordHash) -> None:
    assert Tokenizer(ConversionConfig(word_hash=word_hash)).sequence(text) == plain_sequence(
        text, word_hash.value
    )


@given(TEXTS)
def test_a_sequence_has_its_start_and_end_and_stays_in_range(text: str) -> None:
    sequence = Tokenizer().sequence(text)
    assert 2 <= len(sequence) <= 100
    assert (sequence[0], sequence[-1]) == (0, 11)
    assert all(0 <= token <= 11 for token in sequence)


@given(TEXTS)
def test_decimals_are_the_sequence_as_text(text: str) -> None:
    assert Tokenizer().decimals(text) == [str(token) for token in Tokenizer().sequence(text)]


@given(st.lists(TEXTS, max_size=5))
def test_cached_words_give_the_same_tokens(texts: list[str]) -> None:
    used = Tokenizer()
    for text in texts:
        used.sequence(text)
    assert [used.sequence(text) for text in texts] == [Tokenizer().sequence(text) for text in texts]


def test_the_word_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_CACHED_WORDS", 3)
    cache = vocabulary._TokenCache(vocabulary._rule_1(WordHash.MD5))
    for number in range(10):
        assert cache[f"word{number}"] == plain_token(f"word{number}", "md5")
        assert len(cache) <= 3


def test_long_words_are_not_cached() -> None:
    cache = vocabulary._TokenCache(vocabulary._rule_1(WordHash.MD5))
    assert (cache["x" * 64], cache["data" * 17]) == (plain_token("x" * 64, "md5"), 3)
    assert list(cache) == ["x" * 64]
