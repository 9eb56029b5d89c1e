"""Outcomes of commands that click's test runner called."""

from click.testing import Result

from schemas import SQEHRMError


def refusal(result: Result) -> str:
    """The one line that the command line prints for the error of `result`, with status 1."""
    assert isinstance(result.exception, SQEHRMError)
    assert str(result.exception).isprintable()
    return str(result.exception)
