"""The examples of worker/README.md."""

import re
import sys
from typing import Any

from tests.support.processes import ROOT
from worker import client
from worker.client import asyncio as awaited

# Their names in an agent's installation, which test_client_package.py has.
sys.modules |= {"sqe_hrm_client": client, "sqe_hrm_client.asyncio": awaited}

GUIDE = (ROOT / "worker" / "README.md").read_text()


def example(language: str, contains: str) -> str:
    """The one code block in this language with this text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    (found,) = [block for block in blocks if contains in block]
    return str(found)


def run(code: str, **names: object) -> dict[str, Any]:
    """Run an example; returns its names."""
    namespace: dict[str, Any] = dict(names)
    exec(compile(code, "worker/README.md", "exec"), namespace)  # noqa: S102
    return namespace
