"""kombu's Redis transport for workers, with six changes.

1. One script in Redis takes messages from their queues and notes them as unacknowledged. kombu pops
   a message first and notes it afterwards, so it is lost if the process is killed or Redis restarts
   in between.
2. A request brings as many messages as there is room for in hand (`worker.delivery.hand`) instead
   of one, live ones first.
3. What was taken goes to the service (`worker.delivery.service`) unread. Nothing else happens in
   the event loop, and a connection that ends gives nothing back.
4. Items whose deliveries ended in faults are suspects: a worker takes one only if it has nothing
   else in hand, and nothing beside it (`worker.delivery.suspicion`).
5. Only the beginning of an item that is too long leaves Redis.
6. An idle worker waits for an announcement instead of a message: no request writes while nothing is
   there, and all of them work if memory is full.

Knows queues and deliveries; nothing of what is in a message. Needs Redis 7 or Valkey.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import contextlib
import uuid
from collections.abc import Callable, Sequence
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis, virtual
from redis import ConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from worker.broker.app import EVALUATE_BATCH, MAX_BATCH
from worker.broker.errors import RedisUnfit
from worker.broker.keys import BATCHED, NOTED, Namespace, queue_lists, queue_of, suspects
from worker.broker.streams import KEPT_BYTES, Original
from worker.delivery.hand import Hand
from worker.delivery.requirements import Requirements
from worker.delivery.scripts import TAKE
from worker.delivery.suspicion import Suspicion
from worker.delivery.taken import Taken

Connect = Callable[[], ConnectionPool]
"""Builds connections to Redis; connects to nothing."""

OnReply = Callable[[], None]
"""Callback for each reply from Redis to a request for messages."""

OnRequest = Callable[[float], object]
"""Callback for the seconds of each request for messages."""

WAIT_SECONDS = 0.5
"""Time after which an idle worker looks into all queues again, even if Redis announced nothing. The
replies are also its signs of life."""

WATCH = (("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"), ("CLIENT", "CACHING", "YES"))
"""Commands after which Redis announces the next change of a list that the following `TAKE` found
empty. Unlike a blocking move of the list's last item, this writes nothing, works if memory is full,
and brings the message to nobody but the worker that takes it."""

UNWATCH = (("CLIENT", "TRACKING", "OFF"),)
"""Command after which Redis announces nothing more on this connection."""

MOST_ITEMS = 128
"""Most items that one request takes: a millisecond or two in which Redis serves nobody else."""

ENOUGH_BYTES = 1 << 20
"""Bytes after which a request takes no further item, for the same reason."""

_BATCH = EVALUATE_BATCH.encode()


OnTaken = Callable[[Sequence[Taken]], None]
"""Receives the items of a request, which are in hand. Runs in the event loop: it must be quick."""


class QoS(virtual.QoS):
    """kombu's question whether to request something. The messages themselves are in the hand."""

    def can_consume(self) -> bool:
        """Whether to send a request, or to read a reply or an announcement."""
        channel = self.channel
        return bool(
            channel._in_poll  # noqa: SLF001 - kombu's, for its QoS
            or channel.is_beat_due
            or channel.hand.has_room(channel.active_queues)
            or channel.wait_if_watching()
        )

    def restore_visible(self, *_: object, **__: object) -> None:
        """Do nothing: `worker.delivery.upkeep` does, outside the event loop."""


class Channel(redis.Channel):
    """A channel that takes messages with `TAKE`; if there is none, it waits for Redis to call."""

    QoS: Any = QoS

    from_transport_options: Any = (
        *redis.Channel.from_transport_options,
        "namespace",
        "requirements",
        "connect",
        "on_reply",
        "on_request",
        "hand",
        "on_taken",
        "max_item_bytes",
    )
    namespace: Namespace
    requirements: Requirements
    connect: Connect
    on_reply: OnReply
    on_request: OnRequest
    hand: Hand
    on_taken: OnTaken
    max_item_bytes: int

    is_beat_due = False
    """Whether to send a request although there is no room, as a sign of life."""

    # kombu's attributes: the connection on which a reply is awaited, and since when.
    _in_poll: Any = False
    _brpop_sent_at: Any = None

    _has_asked = False
    """Whether the last `TAKE` had room for anything."""

    _nothing_there = False
    """Whether the last `TAKE` had room, and found nothing for it."""

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

    def wait_if_watching(self) -> bool:
        """Wait for announcements, if Redis may send one although nothing is requested.

        One that nobody waits for would be taken for a reply, or for the end of the connection.
        """
        if self._is_watching:
            self._is_waiting = True
            self._in_poll = self.client.connection
        return self._is_watching

    def look_again(self) -> None:
        """End the current wait, so that the event loop sends the next request."""
        if self._is_waiting:
            self._is_waiting = False
            self._in_poll = None

    def beat(self) -> None:
        """Send a request soon, even one for nothing. Its reply shows that Redis is there.

        A replica refuses it, since it is a script that may write.
        """
        if not self.hand.has_room(self.active_queues):
            self.look_again()  # with room, that alone leads to a request
        self.is_beat_due = not self._in_poll

    def close(self) -> None:
        """Close the channel, after the reply that may still come."""
        self.look_again()  # kombu would read a reply, and there is none
        super().close()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's
        """Send the next request for messages; the event loop calls `_brpop_read` when it replies.

        The names are kombu's, whose own version sends BRPOP. If the last request found nothing,
        this one asks Redis to announce the next message.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        self.is_beat_due = False
        before: tuple[tuple[str, ...], ...] = ()
        if self._nothing_there:
            before = WATCH
        elif self._is_watching:
            before = UNWATCH
        self._is_watching = self._nothing_there
        self._replies_before = len(before)
        unique = uuid.uuid4().hex
        rooms = self.hand.rooms(queues)
        self._has_asked = any(rooms)
        names = [*map(suspects, queues), *(name for queue in queues for name in queue_lists(queue))]
        keys = self.namespace.all_keys((*NOTED, *names, BATCHED))
        limits = (self.max_item_bytes, KEPT_BYTES, MOST_ITEMS, ENOUGH_BYTES)
        arguments = (len(queues), self.hand.suspects, *limits, EVALUATE_BATCH, unique, *rooms)
        script = ("EVAL", TAKE.text) if self._lacks_script else ("EVALSHA", TAKE.digest)
        self._lacks_script = False
        take = (*script, len(keys), *keys, *arguments)
        self.hand.asked(unique)
        connection.send_packed_command(connection.pack_commands([*before, take]))

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401, ARG002 - kombu's
        """Read the reply, and hand over its items. Raises `Empty` if it has none."""
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
        items, suspects_wait = reply
        self.hand.suspects_wait = bool(suspects_wait)
        self._nothing_there = self._has_asked and not items
        if not items:
            connection = self.client.connection
            # An announcement that was read together with the reply leaves nothing to wait for.
            if self._is_watching and not connection.can_read():
                self._is_waiting = True
                self._in_poll = connection
            raise Empty
        self.on_taken([self._note(*item) for item in items])
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
            reply = connection.read_response()
        except NoScriptError:
            self._lacks_script = True
            reply = None
        self.hand.heard()
        self.on_request(monotonic() - self._brpop_sent_at)
        return reply

    def _note(
        self,
        item: bytes,
        tag: bytes,
        faults: bytes | None = None,
        length: int | None = None,
        digest: bytes = b"",
    ) -> Taken:
        """Note an item as in hand."""
        name = tag.decode()
        taken = Taken(
            item,
            name,
            self.namespace.name_of(queue_of(name)),
            self.max_item_bytes,
            None if faults is None else Suspicion.read(digest, faults),
            None if length is None else Original(length, digest.decode()),
        )
        # The name elsewhere in the item only makes it heavier until it is read.
        weight = MAX_BATCH if length is None and _BATCH in item else 1
        self.hand.add(name, taken.queue, weight, is_suspect=taken.suspicion is not None)
        return taken


class Transport(redis.Transport):
    """The transport of workers, for every URL of Redis."""

    Channel = Channel

    # Whatever Redis refuses, the next connection may lead to another server: after a failover the
    # open ones lead to a replica.
    connection_errors = (*redis.Transport.connection_errors, ResponseError, RedisUnfit)
