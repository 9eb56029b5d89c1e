"""worker.process.run before it starts anything; `tests/faults` runs whole workers."""

from typing import NoReturn

import pytest
import redis

from worker.broker.keys import QUEUES
from worker.broker.version import RedisVersionError
from worker.process.devices import Device
from worker.process.run import run
from worker.settings import Settings


def test_a_worker_of_an_old_redis_loads_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(_worker: str, _checkpoint: str | None) -> NoReturn:
        raise AssertionError("loaded")

    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": "6.2.14"})
    with pytest.raises(RedisVersionError):
        run(
            redis_url="redis://localhost:1/0",
            settings=Settings(metrics_port=0),
            device=Device("cpu", "cpu"),
            queues=QUEUES,
            read_model=loading,
        )
