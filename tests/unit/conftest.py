"""Unit tests run torch with one thread: their networks are tiny, so more threads only wait for each
other, and on a busy machine they do little else."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Run all tests in this folder with one torch thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
