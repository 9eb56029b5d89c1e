"""Commands pin a device for the rest of their process; here every module starts without a GPU."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
