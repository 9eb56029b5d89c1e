"""The reference's network and examples, and what the plain loop predicts for them."""

from collections.abc import Iterator

import pytest

from hrm.inference.prediction import Prediction
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support import reference as reference_data
from tests.support.engines import Gate, Turns, loop_predictions


@pytest.fixture
def network() -> HRM:
    """A network that the test may change."""
    return reference_data.network()


@pytest.fixture(scope="module")
def examples() -> list[HRMExample]:
    return reference_data.examples()


@pytest.fixture(scope="module")
def expected() -> dict[HaltedBy, list[Prediction]]:
    """The predictions of the plain loop for every example."""
    return {halting: loop_predictions(halting) for halting in HaltedBy}


@pytest.fixture
def gate(network: HRM) -> Iterator[Gate]:
    gate = Gate(network)
    yield gate
    gate.opened.set()


@pytest.fixture
def turns(network: HRM) -> Turns:
    return Turns(network)
