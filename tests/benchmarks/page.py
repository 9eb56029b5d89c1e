"""Tables and sections of a Markdown page. Knows only text."""

from collections.abc import Sequence

HEADING = "## "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format a table. The first `left` columns hold words, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def paragraphs(*texts: str) -> str:
    return "\n\n".join(texts)


def section(title: str, *texts: str) -> str:
    return paragraphs(HEADING + title, *texts) + "\n"


def with_section(page: str, new: str) -> str:
    """Replace the section of `page` with the same heading as `new`, or append `new`."""
    parts = _parts(page)
    headings = [part.partition("\n")[0] for part in parts]
    heading = new.partition("\n")[0]
    place = headings.index(heading) if heading in headings else len(parts)
    parts[place : place + 1] = [new]
    return paragraphs(*(part.strip("\n") for part in parts if part.strip())) + "\n"


def _parts(page: str) -> list[str]:
    """The text before the first heading, followed by the sections."""
    first, *others = f"\n{page}".split(f"\n{HEADING}")
    return [first, *(HEADING + other for other in others)]
