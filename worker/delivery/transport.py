"""kombu's Redis transport for workers, with six changes.

1. One script in Redis takes a message from its queue and notes it as unacknowledged. kombu pops the
   message first and notes it afterwards, so it is lost if the process is killed or Redis restarts
   in between.
2. An item that is not a task becomes a dead letter. kombu ends the consumer on an item that is not
   JSON.
3. The messages of a live worker are renewed, so that the visibility timeout can be short.
4. Items whose deliveries ended in faults are suspects: a worker takes one only if it has nothing
   else in hand, and nothing beside it (`worker.delivery.suspicion`).
5. Only the beginning of an item that is too long leaves Redis.
6. An idle worker waits for an announcement instead of a message: no request writes while nothing is
   there, and all of them work if memory is full.

Knows queues and deliveries; nothing of what is in a message (`worker.delivery.envelope` reads the
few parts that are needed). Needs Redis 7 or Valkey.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import contextlib
import dataclasses
import uuid
from collections.abc import Callable
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis, virtual
from redis import ConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from worker.broker.app import EVALUATE
from worker.broker.errors import RedisUnfit
from worker.broker.keys import (
    NOTED,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    delivery_tag,
    queue_lists,
    queue_of,
    suspects,
)
from worker.broker.streams import KEPT_BYTES, Original
from worker.delivery.envelope import Envelope, Refusal, read_item, refuse_item, refuse_oversized
from worker.delivery.requirements import Requirements
from worker.delivery.scripts import ACKNOWLEDGE, PUT_BACK, RENEW, RESTORE, TAKE, Suspects
from worker.delivery.suspicion import AFTER_FAULT, Suspicion
from worker.delivery.trouble import Trouble

Connect = Callable[[], ConnectionPool]
"""Builds connections to Redis; connects to nothing."""

OnReply = Callable[[], None]
"""Callback for each reply from Redis to a request for messages."""

WAIT_SECONDS = 0.5
"""Time after which an idle worker looks into all queues again, even if Redis announced nothing. The
replies are also its signs of life."""

WATCH = (("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"), ("CLIENT", "CACHING", "YES"))
"""Commands after which Redis announces the next change of a list that the following `TAKE` found
empty. Unlike a blocking move of the list's last item, this writes nothing, works if memory is full,
and brings the message to nobody but the worker that takes it."""

UNWATCH = (("CLIENT", "TRACKING", "OFF"),)
"""Command after which Redis announces nothing more on this connection."""

RESTORED_AT_ONCE = 100
"""Most items that one script puts back: some milliseconds in which Redis serves nobody else."""

_WITH_QUEUES = (*NOTED, *(name for queue in QUEUES for name in (queue, suspects(queue))))

SUSPECTS_PAUSE = 1.0
"""Seconds after a suspect in which a busy worker takes messages as usual. To take the next one it
has to finish all it has, so a worker with many suspects would otherwise do little else."""


class QoS(redis.QoS):
    """The messages that are delivered to this process and not yet acknowledged."""

    suspects_wait = False
    """Whether suspects waited in Redis after the last `TAKE`."""

    _alone: str | None = None
    """Tag of the last suspect."""

    _no_suspect_before = 0.0
    """Monotonic time until which a busy worker takes no suspect."""

    @property
    def suspects(self) -> Suspects:
        """When the next request should take a suspect."""
        if self._in_hand:
            return Suspects.NEVER
        return Suspects.FIRST if self._is_suspects_turn else Suspects.LAST

    @property
    def _in_hand(self) -> int:
        return len(self._delivered) - len(self._dirty)

    @property
    def _is_suspects_turn(self) -> bool:
        return self.suspects_wait and monotonic() >= self._no_suspect_before

    def can_consume(self) -> bool:
        """Whether this process should take another message now.

        A suspect is evaluated alone: nothing is taken beside it, nor before it if it is its turn.
        """
        is_alone = self._alone in self._delivered and self._alone not in self._dirty
        if is_alone or (self._in_hand and self._is_suspects_turn):
            return False
        return bool(virtual.QoS.can_consume(self))

    def append(self, message: Any, tag: str) -> None:  # noqa: ANN401
        """Note a delivery in this process; `TAKE` has noted it in Redis."""
        item = message.headers["item"]
        if isinstance(item, Envelope) and item.suspicion is not None:
            self._alone = tag
        virtual.QoS.append(self, message, tag)

    def ack(self, tag: str) -> None:
        """Remove a message that has its outcome from Redis, and forget it."""
        try:
            with self.channel.conn_or_acquire() as connected:
                ACKNOWLEDGE(connected, self.channel.namespace.all_keys(NOTED), tag)
        except self.channel.connection_errors as error:
            # The message will be delivered again; meanwhile it must not take up another's place.
            self.channel.trouble.failed(error)
        self._forget(tag)

    def reject(self, tag: str, requeue: bool | str = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Forget a message or, with `requeue`, put it back into its queue.

        `AFTER_FAULT` counts a fault; so does everything else that a broken worker gives back.
        """
        if not requeue:
            self.ack(tag)
            return
        try:
            self._put_back(tag, fault=requeue == AFTER_FAULT or self.channel.is_broken())
        finally:
            self._forget(tag)

    def _forget(self, tag: str) -> None:
        if tag == self._alone:
            self._no_suspect_before = monotonic() + SUSPECTS_PAUSE
        virtual.QoS.ack(self, tag)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ANN401 - kombu's
        """Put back everything that this process has in hand, because its connection ends."""
        for tag in self._delivered:
            self._put_back(tag, client, fault=self.channel.is_broken())
        self._delivered.clear()

    def restore_visible(self, *_: object, **__: object) -> None:
        """Put back what dead workers have left.

        kombu locks this with a key that a full Redis refuses. It needs no lock: an item is put back
        by the first script that finds it.
        """
        with self.channel.conn_or_acquire() as connected:
            arguments = (self.visibility_timeout, RESTORED_AT_ONCE)
            keys = self.channel.namespace.all_keys(_WITH_QUEUES)
            while RESTORE(connected, keys, *arguments) == RESTORED_AT_ONCE:
                pass

    def _put_back(self, tag: str, client: Any = None, *, fault: bool) -> None:  # noqa: ANN401
        """Put a message back into its queue: in front after a drain, at the end after a fault."""
        with self.channel.conn_or_acquire(client) as connected:
            PUT_BACK(connected, self.channel.namespace.all_keys(_WITH_QUEUES), tag, int(fault))

    def renew(self) -> None:
        """Restart the visibility timeout of this process's messages."""
        tags = [tag for tag in self._delivered if tag not in self._dirty]
        if not tags:
            return
        with self.channel.conn_or_acquire() as connected:
            RENEW(connected, self.channel.namespace.all_keys((UNACKED_INDEX,)), *tags)


class Channel(redis.Channel):
    """A channel that takes messages with `TAKE`; if there is none, it waits for Redis to call."""

    QoS = QoS

    from_transport_options: Any = (
        *redis.Channel.from_transport_options,
        "namespace",
        "requirements",
        "connect",
        "trouble",
        "on_reply",
        "is_broken",
        "max_item_bytes",
    )
    namespace: Namespace
    requirements: Requirements
    connect: Connect
    trouble: Trouble
    on_reply: OnReply
    is_broken: Callable[[], bool]
    max_item_bytes: int

    # kombu's attributes: the connection on which a reply is awaited, and since when.
    _in_poll: Any = False
    _brpop_sent_at: Any = None

    _nothing_there = False
    """Whether the last `TAKE` found all lists empty."""

    _is_watching = False
    """Whether Redis may announce a change of a list."""

    _is_waiting = False
    """Whether nothing is requested: the next thing to read is an announcement."""

    _replies_before = 0
    """Number of replies before that of `TAKE`."""

    _lacks_script = False
    """Whether Redis does not know `TAKE` by its digest: it was started, or the script is new."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kombu's
        """Connect, to a Redis that is fit for a worker."""
        super().__init__(*args, **kwargs)
        try:
            with self.conn_or_acquire() as connected:
                self.requirements.check(connected)
        except Exception:
            self.close()
            raise

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:  # noqa: FBT001, FBT002 - kombu's
        """Build connections, of which kombu's event loop watches the asynchronous ones."""
        pool = self.connect()
        if asynchronous:
            channel = self
            base: Any = pool.connection_class

            class Connection(base):
                def disconnect(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
                    super().disconnect(*args, **kwargs)
                    if channel._registered:
                        channel._on_connection_disconnect(self)

            pool.connection_class = Connection
        return pool

    def _size(self, queue: str) -> int:
        """Count the messages in `queue`, without kombu's transaction.

        A Redis 7.0 without free memory refuses every command in one, also those that only read.
        """
        with self.conn_or_acquire() as connected:
            return sum(map(connected.llen, self.namespace.all_keys(queue_lists(queue))))

    def look_again(self) -> None:
        """End the current wait, so that the event loop sends the next request."""
        if self._is_waiting:
            self._is_waiting = False
            self._in_poll = None

    def close(self) -> None:
        """Close the channel; what is in hand goes back."""
        self.look_again()  # kombu would read a reply, and there is none
        super().close()

    def ping(self) -> None:
        """Check on a separate connection that Redis replies, and takes what a worker writes."""
        with self.conn_or_acquire() as connected:
            self.requirements.check_permissions(connected)
        self.on_reply()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's
        """Send the next request for a message; the event loop calls `_brpop_read` when it replies.

        The names are kombu's, whose own version sends BRPOP. If the last request found nothing,
        this one asks Redis to announce the next message.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        before: tuple[tuple[str, ...], ...] = ()
        if self._nothing_there:
            before = WATCH
        elif self._is_watching:
            before = UNWATCH
        self._is_watching = self._nothing_there
        self._replies_before = len(before)
        unique = uuid.uuid4().hex
        apart = [(suspects(queue), queue) for queue in queues]
        lists = [*apart, *((name, queue) for queue in queues for name in queue_lists(queue))]
        keys = self.namespace.all_keys((*NOTED, *(name for name, _ in lists)))
        tags = (delivery_tag(self.namespace.key(queue), unique) for _, queue in lists)
        arguments = (len(apart), *tags, self.qos.suspects, self.max_item_bytes, KEPT_BYTES)
        script = ("EVAL", TAKE.text) if self._lacks_script else ("EVALSHA", TAKE.digest)
        self._lacks_script = False
        take = (*script, len(keys), *keys, *arguments)
        connection.send_packed_command(connection.pack_commands([*before, take]))

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401, ARG002 - kombu's
        """Read the reply, and deliver or refuse its message. Raises `Empty` if it has none."""
        try:
            reply = self._read_reply()
        except self.connection_errors:
            self.client.connection.disconnect()  # the next round connects again
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self.on_reply()
        if reply is None:
            raise Empty
        item, tag, suspects_wait, faults, length, digest = reply
        self.qos.suspects_wait = bool(suspects_wait)
        self._nothing_there = item is None
        if item is None:
            connection = self.client.connection
            # An announcement that was read together with the reply leaves nothing to wait for.
            if self._is_watching and not connection.can_read():
                self._is_waiting = True
                self._in_poll = connection
            raise Empty
        suspicion = None if faults is None else Suspicion.read(digest, faults)
        original = None if length is None else Original(length, digest.decode())
        tag = tag.decode()
        self._hand_over(self._read(item, tag, suspicion, original), tag)
        return True

    def _read_reply(self) -> Any:  # noqa: ANN401 - any reply
        """Read the reply of `TAKE`; returns None if something else came that calls for another."""
        connection = self.client.connection
        if self._is_waiting:
            self._is_waiting = self._nothing_there = False
            connection.read_response(push_request=True)
            return None
        for _ in range(self._replies_before):
            # A Redis that announces nothing is asked again after `WAIT_SECONDS`.
            with contextlib.suppress(ResponseError):
                connection.read_response()
        try:
            return connection.read_response()
        except NoScriptError:
            self._lacks_script = True
            return None

    def _read(
        self, item: bytes, tag: str, suspicion: Suspicion | None, original: Original | None
    ) -> Envelope | Refusal:
        """Read an item, or refuse it."""
        queue = self.namespace.name_of(queue_of(tag))
        if original is not None:
            return refuse_oversized(item, queue, tag, original, self.max_item_bytes)
        if suspicion is not None and suspicion.is_unreadable:
            return refuse_item(item, queue, tag, suspicion.rejection())
        read = read_item(item, queue, tag)
        if isinstance(read, Envelope) and suspicion is not None:
            return dataclasses.replace(read, suspicion=suspicion)
        return read

    def _hand_over(self, item: Envelope | Refusal, tag: str) -> None:
        """Give an item to Celery: the task that names it, or any task to store its dead letter."""
        task, task_id = EVALUATE, tag
        if isinstance(item, Envelope):
            task, task_id = item.task, item.task_id
        # kombu and Celery get only what was checked.
        self.connection._deliver(  # noqa: SLF001 - kombu's, for channels
            {
                "body": None,
                "headers": {"task": task, "id": task_id, "item": item},
                "properties": {
                    "delivery_tag": tag,
                    "delivery_info": {"exchange": "", "routing_key": item.queue},
                },
            },
            item.queue,
        )


class Transport(redis.Transport):
    """The transport of workers, for every URL of Redis."""

    Channel = Channel

    # Whatever Redis refuses, the next connection may lead to another server: after a failover the
    # open ones lead to a replica.
    connection_errors = (*redis.Transport.connection_errors, ResponseError, RedisUnfit)
