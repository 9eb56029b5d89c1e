"""Write the dashboards to the files that Grafana reads: `python -m deploy.grafana`.

The files are committed. A test holds them equal to what this writes.
"""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.builders import failures, fleet, overview

FOLDER = Path(__file__).parent / "dashboards"


def contents() -> dict[str, str]:
    """Build every dashboard: the text of each file by its name."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    boards = [module.build() for module in (overview, failures, fleet)]
    return {f"{board.uid}.json": f"{encoder.encode(board)}\n" for board in boards}


def main() -> None:
    """Write every file."""
    for name, text in contents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
