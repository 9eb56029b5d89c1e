"""Celery's consumer for this worker: it reconnects soon, shows it is alive, renews its messages.

Knows Celery's event loop and requests; nothing of what is in a task.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.worker import consumer
from celery.worker.request import Request
from celery.worker.state import maybe_shutdown, task_reserved
from kombu.connection import Connection

from worker.delivery.transport import WAIT_SECONDS
from worker.delivery.trouble import Trouble

BEAT_SECONDS = 1.0
"""Pause between two signs of life of a worker whose slots are all taken. By them, readiness tells a
busy worker from one that is cut off."""

FIRST_RETRY_SECONDS = 0.2
RETRY_STEP_SECONDS = 0.4
LONGEST_RETRY_SECONDS = 2.0
"""Pauses between attempts to reach Redis. Celery's own grow to 30 s, and messages would wait that
long."""

RENEWALS = 4
"""Number of renewals of a message within the visibility timeout; three of them may fail."""


class Consumer(consumer.Consumer):
    """The consumer that the Celery setting `worker_consumer` names."""

    _connected_at = float("-inf")

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect to the broker, however long it takes."""
        conn.ensure_connection(
            lambda error, _interval: self._trouble.failed(error),
            interval_start=FIRST_RETRY_SECONDS,
            interval_step=RETRY_STEP_SECONDS,
            interval_max=LONGEST_RETRY_SECONDS,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        self._connected_at = time.monotonic()
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Note why a connection ended. Make the next one later if this one ended at once."""
        self._trouble.failed(exc)
        while time.monotonic() < self._connected_at + LONGEST_RETRY_SECONDS:
            maybe_shutdown()
            time.sleep(FIRST_RETRY_SECONDS)

    @property
    def _trouble(self) -> Trouble:
        """The trouble with taking messages; the first reply to a request for them ends it."""
        trouble: Trouble = self.app.conf.broker_transport_options["trouble"]
        return trouble

    def register_with_event_loop(self, hub: Any) -> None:  # noqa: ANN401
        """Start the timers of a connection; Celery stops them when the connection is lost."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(BEAT_SECONDS, self._beat)
        channel = self.task_consumer.channel
        hub.call_repeatedly(WAIT_SECONDS, channel.look_again)
        hub.call_repeatedly(channel.visibility_timeout / RENEWALS, channel.qos.renew)

    def _beat(self) -> None:
        channel = self.task_consumer.channel
        # While a slot is free, each request for a message is a sign of life.
        if not channel.qos.can_consume():
            channel.ping()


def strategy(task: Task, app: Celery, consumer: Consumer, **_: Any) -> Callable[..., None]:  # noqa: ANN401
    """Build the function that turns a delivery into a request for the pool (a task's `Strategy`).

    The request holds the item that was read, or refused, and nothing else. Celery's own code
    therefore meets none of the options in a message, whatever they hold.
    """

    def handle(
        message: Any,  # noqa: ANN401
        _body: object,
        ack: Callable[..., None],
        reject: Callable[..., None],
        _callbacks: object,
    ) -> None:
        request = Request(
            message,
            on_ack=ack,
            on_reject=reject,
            hostname=consumer.hostname,
            app=app,
            task=task,
            connection_errors=consumer.connection_errors,
            # Given so that no log line can show the arguments.
            headers={
                "id": message.headers["id"],
                "task": message.headers["task"],
                "argsrepr": "(...)",
                "kwargsrepr": "{}",
            },
            body=((message.headers["item"],), {}, {}),
            decoded=True,
        )
        task_reserved(request)
        consumer.on_task_request(request)

    return handle
