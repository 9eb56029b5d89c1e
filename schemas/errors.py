"""The base class of every error this project raises on purpose, and the wording of pydantic's.

It lives in the lowest package so that all others can use it. The command line prints such an error
as one line; any other exception is a bug and keeps its traceback.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError

_MAX_NAME_LENGTH = 80
"""Characters of a field's name in an error: an unknown field's name can have any length."""


class SQEHRMError(Exception):
    """One line that names the input, what is wrong with it, and the fix."""


class Problem(NamedTuple):
    """The first problem that pydantic found; `str` gives it as one line."""

    kind: str
    """Pydantic's error type, for example `missing`."""
    field: str
    """Dotted path of the field, cut if it is long; empty if the whole input is meant."""
    message: str

    def __str__(self) -> str:
        if self.kind == "extra_forbidden":
            return f"unknown field {self.field!a}"
        return f"{self.field}: {self.message}" if self.field else self.message


def first_problem(error: ValidationError) -> Problem:
    """The first invalid field and the reason. The result never contains the field's value."""
    details = error.errors(include_url=False, include_input=False)[0]
    return Problem(
        kind=details["type"],
        field=field_name(details["loc"]),
        message=details["msg"].removeprefix("Value error, "),
    )


def field_name(location: Sequence[str | int]) -> str:
    """The dotted path of a field, cut if it is long."""
    name = ".".join(map(str, location))
    return name if len(name) <= _MAX_NAME_LENGTH else name[:_MAX_NAME_LENGTH] + "…"
