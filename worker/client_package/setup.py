"""Copy the client's modules from the project to `src`, under the one import name of the client.

An agent's repository has modules of its own, which may well be called `worker` or `schemas`.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
NAME = "sqe_hrm_client"

SOURCES = (
    ("worker/client/*.py", ""),
    ("worker/broker/contract.py", ""),
    ("worker/broker/keys.py", ""),
    ("worker/broker/tls.py", ""),
    ("worker/broker/urls.py", ""),
    # Replaces the one of worker/client, which also finds an embedded server.
    ("worker/client_package/address.py", ""),
    ("worker/py.typed", ""),
    ("schemas/*.py", "schemas"),
)
"""Files of the project, and the folder of the client's package that each goes to."""

RENAMED = (
    (r"\bworker\.client\b", NAME),
    (r"\b(from|import) worker\.broker\b", rf"\1 {NAME}"),
    (r"\b(from|import) schemas\b", rf"\1 {NAME}.schemas"),
)


def assemble() -> None:
    """Make `src` anew, and forget an earlier build, which may have modules that are gone."""
    for folder in ("src", "build"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for pattern, folder in SOURCES:
        target = HERE / "src" / NAME / folder
        target.mkdir(parents=True, exist_ok=True)
        for file in PROJECT.glob(pattern):
            text = file.read_text(encoding="utf-8")
            for name, renamed in RENAMED:
                text = re.sub(name, renamed, text)
            (target / file.name).write_text(text, encoding="utf-8")


# A source distribution has `src`, and no project around it.
if (PROJECT / "worker" / "client").is_dir():
    assemble()
setup()
