"""The demo writes a share as every other command does, which it may not import."""

import pytest

from worker.cli.tables.style import percent
from worker.demo.view import _rate


@pytest.mark.parametrize("solved", [0, 1, 2, 1250, 2498, 2499, 2500])
def test_a_solve_rate_is_0_or_100_only_if_it_is_exactly_that(solved: int) -> None:
    assert _rate((solved, 2500)) == percent(solved / 2500)


def test_nothing_evaluated_has_no_rate() -> None:
    assert _rate((0, 0)) == "-"
