"""The registry of a checkpoint folder: which checkpoint is `current`, and how it came to that.

Knows `registry.json`, its events and the way back; nothing of weights or inference, and no torch.
`hrm.checkpoint.names` looks `current` up here. The file is read without a lock, since it is
replaced as a whole; writers take turns by a lock on a file beside it.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from hrm.data.files import replaced_file
from schemas import HaltedBy, SQEHRMError, first_problem

REGISTRY = "registry.json"
"""File in a checkpoint folder that holds its `Registry`."""

CURRENT = "current"
"""The name that every command looks up in the registry."""

_LOCK = f".{REGISTRY}.lock"
"""Locked while the registry is changed. A file of its own, because `registry.json` is replaced; it
stays, because removing it would let two writers lock two files."""


class RegistryError(SQEHRMError):
    """A registry cannot be read, written or followed."""


def _within(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError("leads out of the checkpoint folder: name a path in it")
    return path


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed in one line")
    return text


_Line = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
"""A text that errors and tables show."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Promoted(_Part):
    """A checkpoint as it was when it became `current`."""

    name: _Line
    """Its own name, which verdicts and metrics have."""
    path: Annotated[_Line, AfterValidator(_within)]
    """Its file or folder, from the checkpoint folder or from the folder of shipped checkpoints."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12]})"


class PromotionFigures(_Part):
    """Counts of the same pairs by which of two checkpoints solves them, under one halting rule."""

    halting: HaltedBy
    pairs: Annotated[int, Field(ge=0)]
    both: Annotated[int, Field(ge=0)]
    only_old: Annotated[int, Field(ge=0)]
    only_new: Annotated[int, Field(ge=0)]
    neither: Annotated[int, Field(ge=0)]
    unknown: Annotated[int, Field(ge=0)] = 0
    """Pairs in `both` that the old one was trained on, and that the record of the new one lacks.
    They are lost too, since the alarm does not count what is unknown."""
    unjudged: Annotated[int, Field(ge=0)] = 0
    """Beside `pairs`: pairs that the old one was trained on, but which nobody gave to either. They
    count as lost, since nobody can tell."""

    @property
    def lost(self) -> int:
        """Pairs that the old one holds and the new one does not."""
        return self.only_old + self.unknown + self.unjudged

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if self.both + self.only_old + self.only_new + self.neither != self.pairs:
            raise ValueError("pairs: not the sum of both, only_old, only_new and neither")
        if self.unknown > self.both:
            raise ValueError("unknown: more than both")
        return self


class Action(StrEnum):
    """Kind of an event."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"


class Event(_Part):
    """One change of `current`."""

    time: AwareDatetime
    """In UTC, to the second."""
    action: Action
    checkpoint: Promoted
    """The checkpoint that became `current`."""
    replaced: Promoted | None
    """The checkpoint that was `current` before; None for the first event."""
    compared_with: Promoted | None = None
    """The old checkpoint of `figures`; None if nothing was compared."""
    decision: _Line
    """Why it could become `current`: that nothing was lost, or what a person accepted."""
    figures: tuple[PromotionFigures, ...] = ()
    """By halting rule. Without `compared_with`, those of the new checkpoint alone."""


class Registry(_Part):
    """The content of `registry.json`."""

    format_version: Literal[1] = 1
    current: Promoted
    history: Annotated[tuple[Event, ...], Field(min_length=1)]
    """The earliest first."""

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        before = None
        for index, event in enumerate(self.history):
            if event.replaced != before:
                raise ValueError(f"history.{index}.replaced: not what was current before")
            before = event.checkpoint
        if self.current != before:
            raise ValueError("current: not the checkpoint of the last event")
        _chain(self.history)
        return self

    @property
    def chain(self) -> tuple[Promoted, ...]:
        """The promotions in force, the earliest first: `current` is the last, and the way back
        leads over those before it.

        A rollback takes the promotions after its target off the chain, as undo does, so that the
        next rollback leads further back.
        """
        return tuple(_chain(self.history))

    def before_current(self, name: str | None = None) -> Promoted:
        """The checkpoint that a rollback makes `current`.

        Args:
            name: Its name, if it is not the one directly before `current`. If several promotions
                in force have it, the latest counts.

        Raises:
            RegistryError: There is none.
        """
        earlier = self.chain[:-1]
        if not earlier:
            raise RegistryError(
                f"{self.current} is the first promotion: nothing to go back to: promote another"
            )
        for promoted in reversed(earlier):
            if name is None or promoted.name == name:
                return promoted
        names = ", ".join(dict.fromkeys(each.name for each in reversed(earlier)))
        raise RegistryError(
            f"no promotion of {name!r} before {self.current}: go back to {names}, or promote it"
        )

    def with_event(self, event: Event) -> Self:
        """The registry after one more event."""
        return type(self)(current=event.checkpoint, history=(*self.history, event))


def _chain(history: Sequence[Event]) -> list[Promoted]:
    chain: list[Promoted] = []
    for index, event in enumerate(history):
        if event.action is Action.PROMOTE:
            chain.append(event.checkpoint)
            continue
        places = [place for place, each in enumerate(chain[:-1]) if each == event.checkpoint]
        if not places:
            raise ValueError(f"history.{index}.checkpoint: not promoted before, so no way back")
        del chain[places[-1] + 1 :]
    return chain


def read_registry(folder: Path) -> Registry | None:
    """The registry of the checkpoint folder `folder`; None if it has none yet.

    Raises `RegistryError`.
    """
    file = folder / REGISTRY
    try:
        return Registry.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise RegistryError(
            f"{file}: {first_problem(error)}: correct it, or restore the file; without it, "
            "nothing is promoted"
        ) from None


def record_event(folder: Path, event: Event) -> Registry:
    """Add `event` to the registry of `folder`, which is written anew.

    Raises:
        RegistryError: Another process changed `current` after `event.replaced` was read, or the
            file cannot be read or written.
    """
    with _locked(folder):
        registry = read_registry(folder)
        current = None if registry is None else registry.current
        if current != event.replaced:
            raise RegistryError(
                f"{folder / REGISTRY}: {current or 'nothing'} has become current meanwhile: run "
                "the command again"
            )
        changed = (
            Registry(current=event.checkpoint, history=(event,))
            if registry is None
            else registry.with_event(event)
        )
        with replaced_file(folder / REGISTRY) as sink:
            sink.write(changed.model_dump_json(indent=1).encode() + b"\n")
    return changed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the registry of `folder`.

    Writing takes milliseconds, so they wait for each other. The lock ends with its process.
    """
    try:
        with (folder / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise RegistryError(
            f"{folder / REGISTRY}: cannot be written ({error.strerror}): name a checkpoint folder "
            "that can, in SQE_CHECKPOINT_DIR"
        ) from None
