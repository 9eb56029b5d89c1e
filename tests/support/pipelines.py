"""A Redis client for the storing threads that sends nothing: each command brings its own reply."""

from collections.abc import Callable
from typing import Any, Self

import redis

Reply = Callable[[], Any]


class FakePipe:
    """Commands are functions that return their replies, or raise them."""

    def __init__(self, client: "FakeClient") -> None:
        self._client = client
        self._commands: list[Reply] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: Reply) -> None:
        self._commands.append(command)

    def wait(self, replicas: int, _milliseconds: int) -> None:
        self.add(lambda: min(replicas, self._client.replicas))

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        self._client.before()
        self._client.sizes.append(len(self))
        return [_reply(command) for command in self._commands]


def _reply(command: Reply) -> Any:  # noqa: ANN401 - any reply
    try:
        return command()
    except redis.ResponseError as error:
        return error


class FakeClient:
    """Counts the commands of each pipeline."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before
        """Called for each pipeline before it has any effect; may raise a lost connection."""
        self.sizes: list[int] = []
        self.replicas = 0
        self.connection_pool = self
        self.loaded = 0

    def pipeline(self, *, transaction: bool) -> FakePipe:
        assert not transaction
        return FakePipe(self)

    def disconnect(self, *, inuse_connections: bool) -> None:
        assert not inuse_connections

    def script_load(self, _text: str) -> None:
        self.loaded += 1
