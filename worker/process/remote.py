"""Celery's `inspect` commands and events, for operators who use Celery's tools or Flower.

A thread and a connection of its own: the messages' way does not depend on it. Anyone who can
publish in Redis may ask, so only questions are answered; no command changes anything. Knows tasks
by name and id; nothing of what is in a message.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import contextlib
import os
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.utils.sysinfo import load_average
from celery.worker.state import SOFTWARE_INFO
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.pidbox import Node

from worker.broker.contract import TASKS
from worker.delivery.envelope import Envelope
from worker.delivery.job import Ending
from worker.delivery.trouble import Trouble
from worker.settings import Settings

BEAT_SECONDS = 5.0
"""Pause between two heartbeats. Flower shows a worker as offline after twice this time."""

FLUSH_SECONDS = 0.5
"""Longest time for which events of tasks are gathered, to be published together."""

PUBLISHED_AT_ONCE = 500
"""Events in one publication: about 100 kB."""

KEPT_EVENTS = 20_000
"""Events to keep while Redis does not accept them, about 10 MB. Older ones are dropped."""

RETRY_SECONDS = 2.0
"""Pause after an error of Redis."""

HIDDEN = "(...)"
"""Stands for arguments and results, which hold texts."""

REFUSED = "MessageRejected(...)"
"""Stands for the reason, which is in the task's result."""


class Remote:
    """Answers questions about this worker, and tells of its tasks.

    Args:
        app: The application whose broker it uses.
        name: This worker's name.
        queues: The queues it takes messages from.
        slots: Messages that it evaluates at once.
        settings: The operator's settings, which `inspect conf` shows without the URL.
    """

    def __init__(
        self, app: Celery, *, name: str, queues: Sequence[str], slots: int, settings: Settings
    ) -> None:
        self._app = app
        self._name = name
        self._queues = queues
        self._slots = slots
        self._settings = settings
        self._started = time.time()
        self._lock = threading.Lock()
        self._active: dict[int, tuple[Envelope, float]] = {}
        """Tasks in hand and since when, by the identity of the envelope."""
        self._total: Counter[str] = Counter()
        """Answered tasks by name."""
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=KEPT_EVENTS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)
        self._trouble = Trouble("answer Celery's questions and publish its events")
        self._answers: dict[str, Callable[[Connection], Any]] = {
            "ping": lambda _: {"ok": "pong"},
            "stats": self._stats,
            "conf": lambda _: settings.model_dump(mode="json", exclude={"redis_url"}),
            "active": lambda _: self._tasks(),
            "active_queues": lambda _: [_queue(queue) for queue in queues],
            "registered": lambda _: list(TASKS),
            # `active` has every task that was read.
            **dict.fromkeys(("reserved", "scheduled", "revoked"), lambda _: []),
            # Flower asks for it every five seconds.
            "enable_events": lambda _: {"ok": "task events already enabled"},
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Publish what is left, and say that this worker ends; waits for at most `timeout`."""
        self._stopping.set()
        self._thread.join(timeout)

    def accepted(self, envelope: Envelope) -> None:
        """Note that a task was read, and its messages are evaluated from now on."""
        now = time.time()
        expires = envelope.expires_at and envelope.expires_at.isoformat()
        with self._lock:
            self._active[id(envelope)] = (envelope, now)
        task = {"uuid": envelope.task_id, "timestamp": now}
        details = {"name": envelope.task, "args": HIDDEN, "kwargs": HIDDEN, "expires": expires}
        self._tell("task-received", **task, **details)
        self._tell("task-started", **task)

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        """Note that an accepted task has left this worker."""
        now = time.time()
        with self._lock:
            _, started = self._active.pop(id(envelope))
            self._total[envelope.task] += ending is not Ending.GIVEN_BACK
        task = {"uuid": envelope.task_id, "timestamp": now}
        match ending:
            case Ending.ANSWERED:
                self._tell("task-succeeded", **task, result=HIDDEN, runtime=now - started)
            case Ending.REFUSED:
                self._tell("task-failed", **task, exception=REFUSED, traceback="")
            case Ending.GIVEN_BACK:
                self._tell("task-rejected", **task, requeue=True)

    def _tell(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - any JSON value
        self._events.append((kind, fields))

    def _run(self) -> None:
        """Serve on one connection after the other until this worker stops."""
        while not self._stopping.is_set():
            connection = self._app.connection()
            errors = (*connection.connection_errors, *connection.channel_errors)
            try:
                with connection:
                    self._serve(connection)
            except (OperationalError, *errors) as error:
                self._trouble.failed(error)
                self._stopping.wait(RETRY_SECONDS)
        self._app.close()

    def _serve(self, connection: Connection) -> None:
        mailbox = self._app.control.mailbox(connection)
        node = mailbox.Node(self._name, channel=connection.channel())
        events = self._app.events.Dispatcher(
            connection,
            hostname=self._name,
            buffer_group=["task"],
            buffer_limit=PUBLISHED_AT_ONCE,
            buffer_while_offline=False,
        )
        replies = mailbox.reply_exchange.name

        def on_message(body: object, _message: object) -> None:
            self._answer(connection, node, replies, body)

        consumer = node.listen(callback=on_message)
        consumer.on_decode_error = lambda _message, _error: None
        self._beat(events, "worker-online")
        next_beat = time.monotonic() + BEAT_SECONDS
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=FLUSH_SECONDS)
            self._publish(events)
            if time.monotonic() >= next_beat:
                self._beat(events, "worker-heartbeat")
                next_beat = time.monotonic() + BEAT_SECONDS
            self._trouble.passed()
        self._publish(events)
        self._beat(events, "worker-offline")

    def _answer(self, connection: Connection, node: Node, replies: str, request: object) -> None:
        """Answer a question. A request that wants no answer is a command, which is ignored."""
        if not isinstance(request, Mapping) or not isinstance(request.get("reply_to"), Mapping):
            return
        destination = request.get("destination")
        if isinstance(destination, list) and destination and self._name not in destination:
            return
        answer = self._answers.get(str(request.get("method")))
        refusal = f"not a question that workers answer, which are {', '.join(self._answers)}"
        reply = answer(connection) if answer else {"error": refusal}
        node.reply(
            {self._name: reply},
            exchange=replies,
            routing_key=str(request["reply_to"].get("routing_key")),
            ticket=str(request.get("ticket")),
        )

    def _beat(self, events: Any, kind: str) -> None:  # noqa: ANN401 - Celery's dispatcher
        with self._lock:
            active, processed = len(self._active), self._total.total()
        events.send(
            kind,
            freq=BEAT_SECONDS,
            active=active,
            processed=processed,
            loadavg=load_average(),
            **SOFTWARE_INFO,
        )

    def _publish(self, events: Any) -> None:  # noqa: ANN401 - Celery's dispatcher
        """Publish the events that are there."""
        for _ in range(len(self._events)):
            kind, fields = self._events.popleft()
            events.send(kind, **fields)
        events.flush()

    def _tasks(self) -> list[dict[str, Any]]:
        with self._lock:
            active = list(self._active.values())
        return [
            {
                "id": envelope.task_id,
                "name": envelope.task,
                "args": HIDDEN,
                "kwargs": HIDDEN,
                "type": envelope.task,
                "hostname": self._name,
                "time_start": started,
                "acknowledged": False,
                "delivery_info": {"exchange": "", "routing_key": envelope.queue},
                "worker_pid": os.getpid(),
            }
            for envelope, started in active
        ]

    def _stats(self, connection: Connection) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        broker = connection.info()
        with self._lock:
            total = dict(self._total)
        return {
            "total": total,
            "pid": os.getpid(),
            "uptime": int(time.time() - self._started),
            "clock": str(self._app.clock.value),
            "prefetch_count": self._slots,
            "broker": {"transport": broker["transport"], "hostname": broker["hostname"]},
            "pool": {"implementation": "slots of an engine", "max-concurrency": self._slots},
            "rusage": {"utime": used.ru_utime, "stime": used.ru_stime, "maxrss": used.ru_maxrss},
        }


def _queue(name: str) -> dict[str, Any]:
    return {"name": name, "exchange": {"name": "", "type": "direct"}, "routing_key": name}
