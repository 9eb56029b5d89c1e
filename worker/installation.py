"""Says which module an install lacks, and how to get it.

Knows the distribution's own metadata; imports nothing that an install may lack.
"""

import re
from importlib import metadata

DISTRIBUTION = "sqe-hrm-worker"

_DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Distributions whose names differ from their modules' names by more than `-` for `_`."""


def import_problem(error: ImportError) -> str:
    """What to tell the user about a failed import: the missing module, and its cure if known."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return str(error)
    missing = f"the module {error.name} is missing"
    extras = _requirements().get(_distribution(error.name))
    if extras is None:
        return missing
    if None in extras:
        return f"{missing}, which every install needs: install the project again"
    return (
        f"{missing}: it comes with the extra '{extras[0]}' "
        f"(in a checkout: pip install '.[{extras[0]}]')"
    )


def _requirements() -> dict[str, list[str | None]]:
    """The extras that require each distribution; None for what every install needs."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str | None]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if name is not None:
            found.setdefault(_normalised(name[0]), []).append(extra[1] if extra else None)
    return found


def _distribution(module: str) -> str:
    return _normalised(_DISTRIBUTIONS.get(module, module))


def _normalised(name: str) -> str:
    """The spelling in which a package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
