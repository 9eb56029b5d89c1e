"""The arguments of the script that stores outcomes."""

from typing import Any

import pytest

from worker.delivery.scripts import outcome_arguments


@pytest.mark.parametrize(
    ("reader", "times"),
    [({}, 0), ({"position": 3}, 0), ({"results": 2}, 1), ({"is_noted": True}, 1)],
)
def test_an_outcome_is_sent_only_if_something_is_made_of_it(
    reader: dict[str, Any], times: int
) -> None:
    arguments = outcome_arguments("17", outcome='{"verdict":1}', **reader)
    assert arguments.count('{"verdict":1}') == times
