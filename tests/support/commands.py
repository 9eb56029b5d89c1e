"""Outcomes of commands that click's test runner called, and what they leave out in tests."""

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


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Leave `training.png` empty: to draw it takes longer than the training of a tiny network.

    A module or folder that trains imports this fixture.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm.training.run.plot_training", lambda *_: None)
        yield
