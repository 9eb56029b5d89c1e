"""Outcomes of commands that click's test runner called."""

from collections.abc import Iterator

import pytest
from click.testing import Result

from schemas import SQEHRMError


def refusal(result: Result) -> str:
    """The one line that the command line prints for the error of `result`, with status 1."""
    assert isinstance(result.exception, SQEHRMError)
    assert str(result.exception).isprintable()
    return str(result.exception)


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    """Start a module without a GPU, and undo what it pins.

    Commands pin a device for the rest of their process. A module or folder that invokes them
    imports this fixture.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
