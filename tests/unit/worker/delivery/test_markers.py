"""The marker of an identity."""

import hashlib

import pytest

from worker.delivery.markers import marker_of


@pytest.mark.parametrize("length", [0, 1, 2043, 2044, 2045, 4091, 4092, 100_000])
def test_a_marker_is_the_beginning_of_the_hash_of_the_whole_identity(length: int) -> None:
    identity = bytes(each % 251 for each in range(length))
    digest = hashlib.sha256(b"id\0\0" + identity).hexdigest()
    assert marker_of(b"id", b"", identity) == str(int(digest[:16], 16) >> 1)
