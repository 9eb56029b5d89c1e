"""Triton without a GPU: an interpreter in a process of its own, and a compiler."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.support.triton import Compiler, interpreting


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets kernels."""
    pytest.importorskip("triton")
    with interpreting() as pool:
        yield pool


@pytest.fixture
def compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Compiler:
    """A compiler for a device that need not be there."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    return Compiler(monkeypatch, capfd)
