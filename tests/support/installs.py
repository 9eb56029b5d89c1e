"""Distributions built from a copy of the sources, and virtual environments with them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tests.support.processes import DEADLINE, ROOT

INSTALL_SECONDS = 600.0
"""Time for pip, which may have to download everything first."""


@dataclass(frozen=True)
class Install:
    """A virtual environment, and a folder outside the checkout to run programs in."""

    environment: Path
    folder: Path

    def within(self, folder: Path) -> Self:
        """The same environment, to run programs in another folder."""
        return replace(self, folder=folder)

    def run(
        self, program: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.startswith("SQE_")
        }
        return subprocess.run(
            [str(self.environment / "bin" / program), *arguments],
            cwd=self.folder,
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def output(self, program: str, *arguments: str, **variables: str) -> str:
        """Run a program that has to succeed, and return its standard output."""
        done = self.run(program, *arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def create(folder: Path, requirements: Sequence[str]) -> Install:
    """Make an environment in `folder` with what pip finds for the requirements."""
    environment = folder / "venv"
    _succeed([sys.executable, "-m", "venv", "--without-pip", str(environment)], folder)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(environment),
        "install",
        "--quiet",
        "--no-compile",
    ]
    _succeed([*pip, *requirements], folder)
    return Install(environment, folder)


def build_wheel(folder: Path, project: str = ".") -> Path:
    """Build the wheel of a project of the checkout, from a copy of the sources in `folder`."""
    sources, wheels = folder / "sources", folder / "wheels"
    if not sources.exists():
        copy_sources(sources)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels)]
    _succeed([*pip, str(sources / project)], folder)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def copy_sources(to: Path) -> None:
    """Copy the sources of the image, because a build in the checkout would leave folders there."""
    to.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        name = line.removeprefix("!").rstrip("/")
        if line.startswith("!") and (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                to / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__", "build", "src", "*.egg-info"),
            )
        elif line.startswith("!"):
            shutil.copy(ROOT / name, to / name)


def _succeed(command: list[str], cwd: Path) -> None:
    """Run a command that has to succeed, with this environment's variables for pip."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
