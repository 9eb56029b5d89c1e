"""Explain which module an installation lacks, and how to get it.

Knows the distribution's own metadata; imports nothing that an installation may lack.
"""

import re
from importlib import metadata

DISTRIBUTION = "sqe-hrm-worker"

_DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Distributions by module, if the names differ by more than `-` for `_`."""


def import_problem(error: ImportError) -> str:
    """Explain a failed import to the user: the missing module, and the fix if it is known."""
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
    """Map each required distribution to its extras; None stands for every installation."""
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
    """Spell a name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
