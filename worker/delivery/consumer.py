"""Celery's consumer for this worker: it reconnects soon, shows it is alive, and takes messages.

No task becomes one of Celery's requests: `worker.delivery.transport` hands items to the service.
Knows Celery's event loop; nothing of what is in a task.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import time
from functools import partial
from typing import Any

from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from kombu.connection import Connection

from worker.delivery.transport import WAIT_SECONDS
from worker.delivery.trouble import Trouble

BEAT_SECONDS = 1.0
"""Pause between two signs of life of a worker that has no room. By them, readiness tells a busy
worker from one that is cut off."""

FIRST_RETRY_SECONDS = 0.2
RETRY_STEP_SECONDS = 0.4
LONGEST_RETRY_SECONDS = 2.0
"""Pauses between attempts to reach Redis. Celery's own grow to 30 s, and messages would wait that
long."""


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
        channel = self.task_consumer.channel
        hub.call_repeatedly(BEAT_SECONDS, channel.beat)
        hub.call_repeatedly(WAIT_SECONDS, channel.look_again)
        # Room comes from other threads, while the event loop may sleep.
        channel.hand.on_room = partial(hub.call_soon, channel.look_again)
