"""The pictures of the dashboards show values as Grafana writes them."""

import pytest

from tests.pictures.values import COLORS, Format


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("percentunit", 0.9725, "97.2 %"),
        ("percentunit", -1e-9, "0.0 %"),
        ("s", 0.0124, "12.4 ms"),
        ("s", 90, "1.5 min"),
        ("s", 0, "0 s"),
        ("bytes", 512 * 2**20, "512 MiB"),
        ("short", 0, "0"),
        ("short", 1234, "1.23 k"),
        ("short", 20, "20"),
        ("suffix: /s", 5.25, "5.25 /s"),
        ("short", float("nan"), ""),
    ],
)
def test_a_value_has_its_unit_and_three_digits(unit: str, value: float, text: str) -> None:
    assert Format(unit).text(value) == text


def test_a_value_has_the_colour_of_the_step_that_it_reaches() -> None:
    steps = ({"value": None, "color": "green"}, {"value": 0.2, "color": "red"})
    form = Format("percentunit", steps=steps)
    assert [form.color(value) for value in (0.1, 0.2)] == [COLORS["green"], COLORS["red"]]


def test_a_value_with_a_name_shows_that_name_and_its_colour() -> None:
    config = {"mappings": [{"options": {"1": {"text": "as measured", "color": "green"}}}]}
    form = Format.of(config)
    assert (form.text(1.0), form.color(1.0)) == ("as measured", COLORS["green"])
    assert form.text(2.0) == "2"
