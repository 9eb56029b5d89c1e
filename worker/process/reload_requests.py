"""Requests to reload over Redis: how running workers are asked, and how they answer.

Both are published, so nothing is left in Redis. Knows channels and the form of what is published;
nothing of how a worker reloads.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import SQEHRMError
from worker.broker.errors import describe
from worker.broker.keys import RELOAD, Namespace, reload_answers
from worker.delivery.trouble import Trouble
from worker.process.reload import Reloaded

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Longest wait for a request before a worker looks whether it ends."""

PING_SECONDS = 10.0
"""Silence after which a worker asks whether its connection lives, and after as long again gives it
up."""

RETRY_SECONDS = 2.0
"""Pause after an error of Redis."""


class ReloadError(SQEHRMError):
    """No worker can be asked to reload."""


class Request(BaseModel):
    """A request to every worker of a namespace."""

    model_config = ConfigDict(frozen=True)

    id: str
    checkpoint: str | None = None
    """Name or path, for each worker to find on its own disk; None for what it is set to."""


class Answer(BaseModel):
    """One worker's answer."""

    model_config = ConfigDict(frozen=True)

    worker: str
    result: Literal["reloaded", "already_serving", "refused"]
    serving: str
    """Name and short digest of the checkpoint that serves now."""
    before: str | None
    """The same of the one before, if another serves now."""
    reason: str | None
    """Why the request was refused."""


class Listener:
    """The thread of a worker that hears requests, on a connection of its own.

    If the connection breaks, the thread makes another; no message depends on it.

    Args:
        client: The workers' Redis.
        namespace: Whose requests to hear.
        worker: This worker's name.
        ask: Reloads, and calls back with the end of it.
    """

    def __init__(
        self,
        client: redis.Redis,
        namespace: Namespace,
        worker: str,
        ask: Callable[[str | None, Callable[[Reloaded], object]], object],
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._worker = worker
        self._ask = ask
        self._trouble = Trouble("hear requests to reload")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload-requests", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Hear no more requests. Does not wait."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except redis.RedisError as error:
                self._trouble.failed(error)
                self._stopping.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        """Hear requests until the worker ends. Raises `redis.RedisError` once the line is cut."""
        with _subscription(self._client) as pubsub:
            pubsub.subscribe(self._namespace.key(RELOAD))
            heard = time.monotonic()
            is_asked = False
            while not self._stopping.is_set():
                found = pubsub.get_message(timeout=LOOK_SECONDS)
                silence = time.monotonic() - heard
                if found is not None:
                    heard, is_asked = time.monotonic(), False
                    self._trouble.passed()
                    if found["type"] == "message":
                        self._receive(found["data"])
                elif silence > 2 * PING_SECONDS:
                    raise redis.ConnectionError("no answer to a ping")
                elif silence > PING_SECONDS and not is_asked:
                    is_asked = True
                    pubsub.ping()

    def _receive(self, data: bytes) -> None:
        try:
            request = Request.model_validate_json(data)
        except ValidationError:
            logger.warning("a request to reload has an unknown form and is ignored")
            return
        logger.info("asked to reload by request %.40s", request.id)
        self._ask(request.checkpoint, lambda reloaded: self._answer(request, reloaded))

    def _answer(self, request: Request, reloaded: Reloaded) -> None:
        answer = Answer(
            worker=self._worker,
            result=reloaded.result.value,
            serving=reloaded.serving,
            before=reloaded.before,
            reason=reloaded.reason,
        )
        channel = self._namespace.key(reload_answers(request.id))
        try:
            self._client.publish(channel, answer.model_dump_json())
        except redis.RedisError as error:
            logger.warning("the request to reload gets no answer: %s", describe(error))


class Asked:
    """A request that the workers of a namespace have got.

    Args:
        client: The workers' Redis.
        namespace: Whose workers to ask.
        checkpoint: Name or path, for each worker to find on its own disk; None for what each is set
            to.

    Raises:
        ReloadError: No worker listens, or Redis cannot be reached.
    """

    def __init__(self, client: redis.Redis, namespace: Namespace, checkpoint: str | None) -> None:
        request = Request(id=uuid.uuid4().hex, checkpoint=checkpoint)
        try:
            self._pubsub = _subscription(client)
            self._pubsub.subscribe(namespace.key(reload_answers(request.id)))
            # Confirmed before anybody can answer.
            self._pubsub.get_message(timeout=None)
            self.workers: int = client.publish(namespace.key(RELOAD), request.model_dump_json())
            """How many workers have heard it."""
        except redis.RedisError as error:
            raise ReloadError(f"{describe(error)}: check SQE_REDIS_URL") from None
        if not self.workers:
            raise ReloadError(
                "no worker listens: start one, or check SQE_REDIS_URL and SQE_NAMESPACE"
            )

    def answers(self, timeout: float) -> Iterator[Answer]:
        """Yield each worker's answer as it arrives, until all have answered or for `timeout`.

        Raises `ReloadError` if Redis cannot be reached any more.
        """
        end = time.monotonic() + timeout
        missing = self.workers
        while missing and (left := end - time.monotonic()) > 0:
            try:
                found: Any = self._pubsub.get_message(timeout=left)
            except redis.RedisError as error:
                raise ReloadError(
                    f"{describe(error)}: the workers reload all the same, and their logs say how"
                ) from None
            if found is not None:
                missing -= 1
                yield Answer.model_validate_json(found["data"])


def _subscription(client: redis.Redis) -> Any:  # noqa: ANN401 - redis-py's PubSub has no types
    return client.pubsub()  # type: ignore[no-untyped-call]
