"""A command pins its process to a device; the next test starts with the environment as it was."""

import os
from collections.abc import Iterator

import pytest

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def unpinned() -> Iterator[None]:
    """Restore the variable that pinning sets."""
    before = os.environ.get(VISIBLE_DEVICES)
    yield
    os.environ.pop(VISIBLE_DEVICES, None)
    if before is not None:
        os.environ[VISIBLE_DEVICES] = before
