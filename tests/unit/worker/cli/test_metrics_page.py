"""worker.cli.metrics_page: the page is what the processes serve."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from worker.cli import metrics_page

FILE = Path(__file__).parents[4] / "deploy" / "METRICS.md"

OWN = [
    family
    for families in (metrics_page._worker(), metrics_page._monitor())
    for family in metrics_page._own(families)
]


def test_the_page_is_up_to_date() -> None:
    assert FILE.read_text() == metrics_page.page(), "python -m worker.cli.metrics_page " + str(FILE)


@pytest.mark.parametrize("family", OWN, ids=lambda family: family.name)
def test_a_text_says_unit_and_meaning(family: Metric) -> None:
    text = family.documentation
    assert text.endswith(".")
    assert len(text.split()) > 2
    if "_seconds" in family.name:
        assert re.search("Seconds|Unix time", text)
    if family.name.endswith("_bytes"):
        assert re.search("[Bb]ytes", text)
    if family.name.endswith(("_ratio", "_accuracy", "_similarity", "_probability")):
        assert ", of 1" in text


def test_every_label_has_values_or_says_what_they_are() -> None:
    page = FILE.read_text()
    rows = [line.split("|")[3] for line in page.splitlines() if line.count("|") == 6]
    bare = {label for row in rows for label in row.split(";") if ":" not in label}
    assert {label.strip(" `") for label in bare} - {"labels", "---", ""} == set(metrics_page.OPEN)


def test_buckets_are_listed_once_each() -> None:
    _, _, buckets = FILE.read_text().partition("## Buckets")
    names = re.findall(r"^- `(\w+)`: [\d., e-]+$", buckets, re.MULTILINE)
    histograms = [family for family in OWN if family.type == "histogram"]
    assert len(names) == len(set(names)) == len(histograms)
