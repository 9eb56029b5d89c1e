"""Programs of other projects that tests run: installed ones, or those of Debian's packages.

A package is unpacked beside the virtual environment's packages, for which nobody needs to be root.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
}
"""Debian's package of each program."""

SECONDS = 120
"""Time to load a package of 20 MB."""


@cache
def program(name: str) -> str:
    """The path of a program; skips the test if it is neither installed nor to be had."""
    installed = shutil.which(name)
    if installed is not None:
        return installed
    folder = Path(sys.prefix) / "debian" / PACKAGES[name]
    if not folder.exists():
        _unpack(PACKAGES[name], folder)
    return str(folder / "usr" / "bin" / name)


def _unpack(package: str, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            _run("apt-get", "download", package, cwd=scratch)
            (file,) = Path(scratch).glob("*.deb")
            _run("dpkg-deb", "-x", str(file), "root", cwd=scratch)
        except (OSError, subprocess.SubprocessError) as problem:
            pytest.skip(f"{package} is not installed and cannot be loaded: {problem}")
        # Another test process may have been faster.
        with contextlib.suppress(OSError):
            (Path(scratch) / "root").rename(folder)


def _run(*command: str, cwd: str) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=SECONDS)
