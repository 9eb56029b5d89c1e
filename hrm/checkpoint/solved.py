"""The accepted texts that a checkpoint is recorded to solve, read without torch.

Knows the file of accepted pairs as far as a monitor needs it: hashes of texts, flags and a digest;
`hrm.checkpoint.pairs` knows all of it. The file is in the format of safetensors: the length of a
JSON header in eight bytes, the header, which says where each tensor's bytes are, and these.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from hrm.checkpoint.names import CheckpointError
from hrm.data.texts import HASH_CHARACTERS, TextHashes
from schemas import HaltedBy

ACCEPTED_PAIRS = "accepted.pairs"
"""File in a checkpoint folder that holds its accepted pairs: tensors as safetensors, with a header.
It is not named like weights, so that nobody takes it for them."""

HEADER = "accepted_pairs"
"""Field of the tensors' metadata that holds the `PairsHeader`, as JSON."""

TEXT_HASHES = "text_hashes"
"""Name of the uint8 (N, 3, 16) tensor of `TextHashes`."""

_LENGTH_BYTES = 8


class PairsHeader(BaseModel):
    """The header of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    vocabulary: int
    """Number of tokens of the conversion."""
    solved_by: str | None = None
    """Digest of the weights that the solved flags are of; None if there are no flags."""


def flags_of(rule: HaltedBy) -> str:
    """Name of the uint8 (N,) tensor that says which pairs are solved under `rule`."""
    return f"solved.{rule}"


class SolvedTexts(NamedTuple):
    """The record of which accepted texts a checkpoint solves."""

    digest: str
    """The checkpoint's digest."""
    solved: frozenset[TextHashes]
    """Texts that are solved under both halting rules."""
    unsolved: frozenset[TextHashes]
    """All others."""


def read_solved_texts(file: Path) -> SolvedTexts | None:
    """Read a checkpoint's `accepted.pairs`.

    Returns:
        None if there is no such file, or it does not say which texts are solved.

    Raises:
        CheckpointError: The file is damaged, of another version, or cannot be read.
    """
    try:
        return _solved_texts(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        raise unusable_pairs(file, "damaged, or of another version") from None


def unusable_pairs(file: Path, problem: str) -> CheckpointError:
    """The error of a file of pairs that has `problem`."""
    return CheckpointError(
        f"{file}: {problem}: restore it, or remove it and write it again with sqe-hrm checkpoint "
        "record"
    )


def _solved_texts(content: bytes) -> SolvedTexts | None:
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    tensors = json.loads(content[_LENGTH_BYTES:start])
    header = PairsHeader.model_validate_json(tensors["__metadata__"][HEADER])
    if header.solved_by is None:
        return None

    def column(name: str) -> bytes:
        first, last = (start + offset for offset in tensors[name]["data_offsets"])
        if not start <= first <= last <= len(content):
            raise ValueError(f"{name} is not in the file")
        return content[first:last]

    hashes, length = column(TEXT_HASHES).hex(), HASH_CHARACTERS
    each_hash = [hashes[at : at + length] for at in range(0, len(hashes), length)]
    texts = [TextHashes(*three) for three in zip(*[iter(each_hash)] * 3, strict=True)]
    flags = zip(*(column(flags_of(rule)) for rule in HaltedBy), strict=True)
    unsolved = {text for text, solved in zip(texts, flags, strict=True) if not all(solved)}
    # Equal texts with several puzzles or targets are several pairs.
    return SolvedTexts(header.solved_by, frozenset(texts) - unsolved, frozenset(unsolved))
