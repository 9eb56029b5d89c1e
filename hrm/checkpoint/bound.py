"""Files of a checkpoint folder that were measured of its weights, and are bound to these by digest.

Knows how such a file is read and written; nothing of what it holds, and no torch.
"""

import logging
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hrm.checkpoint.names import CheckpointError
from hrm.data.files import replaced_file
from schemas import first_problem

logger = logging.getLogger(__name__)


class Strict(BaseModel):
    """A part of such a file: a misspelt field, or one of another type, is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Bound(Strict):
    """The content of such a file."""

    format_version: Literal[1] = 1
    digest: str = Field(description="Digest of the checkpoint that was measured.")

    def to_json(self) -> str:
        """The content of the file, without its line end."""
        return self.model_dump_json(indent=1)


Kind = TypeVar("Kind", bound=Bound)


def read_bound(file: Path, kind: type[Kind], digest: str) -> Kind | None:
    """Read `file`, if it is of the checkpoint with `digest`.

    Returns:
        None if there is no such file, or if its figures are of other weights, which is logged.

    Raises:
        CheckpointError: The file is damaged or cannot be read.
    """
    try:
        content = kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(
            f"{file}: {first_problem(error)}: remove it, and measure again with "
            "sqe-hrm checkpoint record"
        ) from None
    if content.digest != digest:
        logger.warning(
            "%s: ignored: its figures are of other weights (%.12s) than these (%.12s): measure "
            "again with sqe-hrm checkpoint record",
            file,
            content.digest,
            digest,
        )
        return None
    return content


def write_bound(file: Path, content: Bound) -> Path:
    """Write `file` atomically, and return it. Raises `CheckpointError`."""
    try:
        with replaced_file(file) as sink:
            sink.write(content.to_json().encode() + b"\n")
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be written ({error.strerror}): make room for it, or copy the "
            "checkpoint to a folder of your own"
        ) from None
    return file
