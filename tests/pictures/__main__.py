"""Draw the dashboards of a real run into `deploy/grafana/pictures`: `python -m tests.pictures`."""

import os
import platform
import tempfile
import time
from pathlib import Path

import click

from tests.pictures.answers import Source
from tests.pictures.drawing import draw
from tests.pictures.story import AFTER_SECONDS, SCRAPE_SECONDS, WINDOW, Story
from tests.support.dashboards import FOLDER, boards
from tests.support.deployment import deployment

PICTURES = FOLDER.parent / "pictures"

VALUES = {"window": WINDOW, "before": "15m", "__rate_interval": "1m", "__range": "30m"}
"""Short times, since the run is short."""


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(min=1), default=20, show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=PICTURES)
def main(minutes: float, output: Path) -> None:
    """Run a deployment for some minutes, tell the story to it, and draw every dashboard."""
    output.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(
            Path(folder),
            scrape_seconds=SCRAPE_SECONDS,
            canary_seconds=10,
            visibility_timeout=30,
        ) as running,
    ):
        story = Story(running, minutes)
        story.tell()
        time.sleep(AFTER_SECONDS)
        source = Source(running.prometheus, story.start, time.time(), VALUES)
        draw_all(source, story, output)


def draw_all(source: Source, story: Story, output: Path) -> None:
    """Draw every dashboard, each with the same words about the run."""
    caption = (
        "Not a screenshot of Grafana: drawn by `make pictures` from what Prometheus answered to "
        f"the dashboard's queries after a real run of {story.minutes:g} minutes on "
        f"{os.cpu_count()} cores ({platform.machine()}), scraped every {SCRAPE_SECONDS:g} s and "
        f"averaged over {WINDOW}. {story}"
    )
    for board in boards():
        draw(board, source, caption, output / f"{board.uid.removeprefix('sqe-hrm-')}.png")


if __name__ == "__main__":
    main()
