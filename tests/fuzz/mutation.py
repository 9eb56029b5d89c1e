"""Inputs that went wrong: sound bytes, texts and JSON values, changed at random places.

Knows bytes and JSON; nothing of what an input means.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SECRET = "confidential"
"""A word of the samples' texts and passwords. An error may quote a few characters of an input, but
no text at length."""

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e308", "-0.0", "0", "-1", "1.5"),
    *(str(2**63), str(2**64), str(10**400), "9" * 4300, "9" * 4301, "-" + "9" * 5000),
    "1." + "9" * 5000,
)
"""JSON texts that a reader takes for numbers, or refuses for their size."""

OTHERS = (
    *('"2020-01-01"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59-23:59"'),
    *("null", "true", "false", '""', "{}", "[]", '"0"', '" "', "[[]]", "[{}]", '{"": ""}'),
    *(r'"\ud800"', r'"\udc00\ud800"', r'"\u0000"', r'"\u2028"', r'"\x"', '"\x00"', '"\x7f"'),
    *('"é"', '"\U0001f600"', '"\u202e"', '"line\\nbreak"', "'", "undefined", "//", "\ufeff{}"),
    *('"' + "x" * length + '"' for length in (64, 128, 129, 255, 256, 257, 5000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (10, 500)),
    *("[" * depth + "]" * depth for depth in (10, 500, 5000)),
    *("[" * 5000, '{"a":' * 5000, '"' + SECRET * 500 + '"'),
    json.dumps({f"field-{number}": number for number in range(300)}),
)
"""JSON texts of other values that are seldom meant, and texts that are no JSON."""

TOKENS = (
    *(
        b"",
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\n",
        b"\\",
        b'"',
    ),
    *(b"{", b"}", b"[", b"]", b",", b":", b"NaN", b"1e999", rb"\ud800", rb"\u0000", b"\x80\x04"),
    *(b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"A" * 70_000, SECRET.encode() * 20),
)
"""Bytes that parsers treat specially."""


@dataclass(frozen=True)
class Raw:
    """A JSON text that stands for a value, also if it is none."""

    text: str


@dataclass(frozen=True)
class Members:
    """An object's members in order, perhaps with a name twice."""

    members: list[tuple[str, Any]]


def written(value: Any) -> str:  # noqa: ANN401 - a JSON value
    """The JSON text of a value with `Raw` and `Members` in it."""
    match value:
        case Raw():
            return value.text
        case Members():
            pairs = (f"{json.dumps(name)}: {written(each)}" for name, each in value.members)
            return "{" + ", ".join(pairs) + "}"
        case dict():
            return written(Members(list(value.items())))
        case list():
            return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def _parts(value: Any) -> int:  # noqa: ANN401
    """The number of values in a value, itself included."""
    return 1 + sum(map(_parts, _children(value)))


def _children(value: Any) -> list[Any]:  # noqa: ANN401
    match value:
        case Members():
            return [each for _, each in value.members]
        case dict():
            return list(value.values())
        case list():
            return value
    return []


def _planted(value: Any, at: int, other: Raw) -> Any:  # noqa: ANN401
    """A copy of `value` with `other` in place of its part with the number `at`; 0 is all of it."""
    if at == 0:
        return other
    children, at = list(_children(value)), at - 1
    for place, child in enumerate(children):
        if at < _parts(child):
            children[place] = _planted(child, at, other)
            break
        at -= _parts(child)
    if isinstance(value, list):
        return children
    members = value.members if isinstance(value, Members) else value.items()
    return Members([(name, each) for (name, _), each in zip(members, children, strict=True)])


class Mutator:
    """Changes at random; equal seeds make equal changes."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def one_of(self, *makers: Callable[[], Any]) -> Any:  # noqa: ANN401
        return self.random.choice(makers)()

    def some(self) -> range:
        """Mostly one, sometimes several."""
        return range(self.random.choice((1, 1, 1, 2, 3, 8)))

    # Bytes.

    def damage(self, sound: bytes) -> bytes:
        """`sound` with a few changes."""
        changed = sound
        for _ in self.some():
            changed = self._change(changed)
        return changed

    def _change(self, data: bytes) -> bytes:
        start = self.random.randint(0, len(data))
        end = min(len(data), start + self.random.choice((0, 1, 1, 2, 8, 64, 1000)))
        before, span, after = data[:start], data[start:end], data[end:]
        return self.random.choice(
            (
                lambda: before + after,
                lambda: before + span + span + after,
                lambda: self.random.choice((before, after, before + after)),
                lambda: before + self.random.choice(TOKENS) + after,
                lambda: before + self.random.randbytes(len(span)) + after,
                lambda: (
                    before + bytes(each ^ 1 << self.random.randrange(8) for each in span) + after
                ),
                lambda: after + span + before,
            )
        )()

    def noise(self) -> bytes:
        """Bytes that resemble nothing."""
        return self.random.randbytes(self.random.choice((0, 1, 2, 10, 100, 1000)))

    def text(self, sound: str) -> str:
        """`sound` with a few changes; lone surrogates stand for bytes that are not UTF-8."""
        return self.damage(sound.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    # JSON values.

    def value(self, sound: Any) -> Any:  # noqa: ANN401
        """A copy of `sound`, a JSON value, with a few changes; for `written`."""
        changed = sound
        for _ in self.some():
            if self.random.random() < 0.5:
                changed = _planted(changed, self.random.randrange(_parts(changed)), self.hostile())
            else:
                changed = self._walk(changed)
        return changed

    def hostile(self) -> Raw:
        """A value that is seldom meant."""
        return Raw(self.random.choice(self.random.choice((NUMBERS, OTHERS))))

    def _walk(self, value: Any) -> Any:  # noqa: ANN401
        """Change `value` itself, or something in it."""
        if isinstance(value, dict):
            value = Members(list(value.items()))
        is_container = isinstance(value, Members | list)
        if not is_container or self.random.random() < 0.15:
            return self._replaced(value)
        if isinstance(value, list):
            return self._changed(value, self._walk, self.hostile)
        return Members(
            self._changed(
                value.members,
                lambda member: self.one_of(
                    lambda: (member[0], self._walk(member[1])),
                    lambda: (member[0], self._walk(member[1])),
                    lambda: (self.text(member[0]), member[1]),
                ),
                lambda: self.one_of(
                    lambda: ("unknown", self.hostile()),
                    lambda: (
                        (self.random.choice(value.members)[0], self.hostile())
                        if value.members
                        else ("", self.hostile())
                    ),
                ),
            )
        )

    def _changed(
        self, parts: Sequence[Any], change: Callable[[Any], Any], make: Callable[[], Any]
    ) -> list[Any]:
        """The parts of a container with one changed, removed, doubled, moved or added."""
        changed = list(parts)
        place = self.random.randrange(len(changed) + 1)
        if place == len(changed):
            return [*changed, make()]
        part = changed.pop(place)
        changed[place:place] = self.random.choice(
            (
                lambda: [change(part)],
                lambda: [change(part)],
                lambda: [change(part)],
                list,
                lambda: [part, part],
                lambda: [part, make()],
            )
        )()
        return changed

    def _replaced(self, value: Any) -> Any:  # noqa: ANN401
        return self.one_of(
            self.hostile,
            self.hostile,
            lambda: [value],
            lambda: {"value": value},
            lambda: written(value),
            lambda: self.text(value) if isinstance(value, str) else self.hostile(),
            lambda: (
                value + self.random.choice((" ", "\n", "\x00", "x" * 300))
                if isinstance(value, str)
                else self.hostile()
            ),
        )
