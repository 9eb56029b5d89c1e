"""The root of every error this project raises on purpose, and how it words pydantic's.

It lies in the lowest folder so that all others can use it. The command line prints such an error
as one line; everything else is a bug and keeps its traceback.
"""

from typing import NamedTuple

from pydantic import ValidationError


class SQEHRMError(Exception):
    """One line that names the input, what is wrong with it, and the fix."""


class Problem(NamedTuple):
    """The first problem that pydantic found, as `str` in one line."""

    kind: str
    """Pydantic's type of the error, such as `missing`."""
    field: str
    """Dotted path of the field; empty if the problem lies with the whole."""
    message: str

    def __str__(self) -> str:
        if self.kind == "extra_forbidden":
            return f"unknown field {self.field!a}"
        return f"{self.field}: {self.message}" if self.field else self.message


def first_problem(error: ValidationError) -> Problem:
    """The first field that does not fit, and why. It never holds the value itself."""
    details = error.errors(include_url=False, include_input=False)[0]
    return Problem(
        kind=details["type"],
        field=".".join(map(str, details["loc"])),
        message=details["msg"].removeprefix("Value error, "),
    )
