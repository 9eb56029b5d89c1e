"""kombu's Redis transport for workers, with three corrections.

1. One script in Redis takes a message from its queue and notes it as unacknowledged. kombu pops the
   message first and notes it afterwards, so it is lost if the process is killed or Redis restarts
   in between.
2. An item that is not a task becomes a dead letter. kombu ends the consumer on an item that is not
   JSON.
3. The messages of a live worker are renewed, so that the visibility timeout can be short.

Knows queues and deliveries; nothing of what is in a message (`worker.delivery.envelope` reads the
few parts that are needed). Needs Redis 7 or Valkey.
"""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import uuid
from collections.abc import Callable
from queue import Empty
from time import monotonic, time
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str

from worker.broker.keys import (
    LIVE_QUEUE,
    QUEUES,
    UNACKED,
    UNACKED_INDEX,
    UNACKED_MUTEX,
    delivery_tag,
    queue_lists,
    queue_of,
)
from worker.delivery.envelope import Refusal, read_item

OnReply = Callable[[], None]
"""Callback for each reply from Redis to a request for messages."""

OnRefused = Callable[[Refusal], object]
"""Callback that stores the dead letter of a refused item, or raises."""

WAIT_SECONDS = 0.5
"""Time for which an idle worker waits for a live message before it checks all queues again. A
message of the backfill queue may wait that long for an idle worker."""

# A Redis without free memory refuses scripts that write unless they have this flag. Taking messages
# out is what frees memory.
TAKE = """#!lua flags=allow-oom
-- KEYS: unacked, its index, then the lists in order. ARGV: now, then one delivery tag per list.
for i = 3, #KEYS do
  local item = redis.call('RPOP', KEYS[i])
  if item then
    redis.call('HSET', KEYS[1], ARGV[i - 1], item)
    redis.call('ZADD', KEYS[2], ARGV[1], ARGV[i - 1])
    return {item, ARGV[i - 1]}
  end
end
return false
"""

PUT_BACK = """#!lua flags=allow-oom
-- KEYS: unacked, its index, the queue. ARGV: the delivery tag.
local item = redis.call('HGET', KEYS[1], ARGV[1])
-- At the end that is taken first, since it has waited longest. The push comes first, because a
-- script that fails keeps the changes it has made.
if item then redis.call('RPUSH', KEYS[3], item) end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
"""


class QoS(redis.QoS):
    """The messages that are delivered to this process and not yet acknowledged."""

    def append(self, message: Any, tag: str) -> None:  # noqa: ANN401
        """Note a delivery in this process; `TAKE` has noted it in Redis."""
        virtual.QoS.append(self, message, tag)

    def ack(self, tag: str) -> None:
        """Forget a message that was answered."""
        try:
            self._remove_from_indices(tag).execute()
        finally:
            # Even if Redis did not reply: the message will be delivered again, and meanwhile it
            # must not take up the place of another.
            virtual.QoS.ack(self, tag)

    def reject(self, tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Forget a message or, with `requeue`, put it back into its queue."""
        if not requeue:
            self.ack(tag)
            return
        try:
            self.restore_by_tag(tag)
        finally:
            virtual.QoS.ack(self, tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: ANN401, ARG002, FBT001, FBT002 - kombu's
        """Put a message back into its queue, unless it was acknowledged meanwhile.

        Anyone may write any tag into the index. If the tag names no queue of this project, the item
        goes to the live queue, where it is evaluated or becomes a dead letter. Nobody would read it
        from the key that the tag names.
        """
        queue = queue_of(bytes_to_str(tag))  # bytes, when kombu read it from the index
        if queue not in QUEUES:
            queue = LIVE_QUEUE
        with self.channel.conn_or_acquire(client) as connected:
            connected.eval(PUT_BACK, 3, UNACKED, UNACKED_INDEX, queue, tag)

    def renew(self) -> None:
        """Restart the visibility timeout of this process's messages."""
        tags = [tag for tag in self._delivered if tag not in self._dirty]
        if not tags:
            return
        with self.channel.conn_or_acquire() as connected:
            # Only existing entries (`xx`): an acknowledged message must not come back.
            connected.zadd(UNACKED_INDEX, dict.fromkeys(tags, time()), xx=True)


class Channel(redis.Channel):
    """A channel that takes messages with `TAKE`; if there is none, it waits in the first queue."""

    QoS = QoS
    unacked_key = UNACKED
    unacked_index_key = UNACKED_INDEX
    unacked_mutex_key = UNACKED_MUTEX

    from_transport_options: Any = (
        *redis.Channel.from_transport_options,
        "on_reply",
        "on_refused",
    )
    on_reply: OnReply
    on_refused: OnRefused

    # kombu's attributes: the connection on which a reply is awaited, and since when.
    _in_poll: Any = False
    _brpop_sent_at: Any = None

    _nothing_there = False
    """Whether the last `TAKE` found all queues empty."""

    _waiting = False
    """Whether the current request only waits and takes nothing."""

    def ping(self) -> None:
        """Check on a separate connection that Redis replies."""
        with self.conn_or_acquire() as connected:
            connected.ping()
        self.on_reply()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's
        """Send the next request for a message; the event loop calls `_brpop_read` when it replies.

        The names are kombu's, whose own version sends BRPOP.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self._waiting = self._nothing_there
        self._nothing_there = False
        if self._waiting:
            # This moves a message from the list's end to the same end: it changes nothing, and
            # Redis replies as soon as there is a message.
            first = queues[0]
            command: tuple[Any, ...] = ("BLMOVE", first, first, "RIGHT", "RIGHT", WAIT_SECONDS)
        else:
            unique = uuid.uuid4().hex
            lists = [(key, queue) for queue in queues for key in queue_lists(queue)]
            keys = (UNACKED, UNACKED_INDEX, *(key for key, _ in lists))
            tags = (delivery_tag(queue, unique) for _, queue in lists)
            command = ("EVAL", TAKE, len(keys), *keys, time(), *tags)
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401
        """Read the reply, and deliver or refuse its message. Raises `Empty` if it has none."""
        try:
            reply = self.client.parse_response(self.client.connection, "EVAL", **options)
        except self.connection_errors:
            self.client.connection.disconnect()  # the next round connects again
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self.on_reply()
        if self._waiting or not reply:
            self._nothing_there = not self._waiting
            raise Empty
        item, tag = reply[0], reply[1].decode()
        self._hand_over(item, tag)
        return True

    def _hand_over(self, item: bytes, tag: str) -> None:
        queue = queue_of(tag)
        envelope = read_item(item, queue, tag)
        if isinstance(envelope, Refusal):
            self.on_refused(envelope)
            self.qos._remove_from_indices(tag).execute()  # noqa: SLF001 - kombu's, for subclasses
            return
        # kombu and Celery get only what was checked.
        self.connection._deliver(  # noqa: SLF001 - kombu's, for channels
            {
                "body": None,
                "headers": {"task": envelope.task, "envelope": envelope},
                "properties": {
                    "delivery_tag": tag,
                    "delivery_info": {"exchange": "", "routing_key": queue},
                },
            },
            queue,
        )


class Transport(redis.Transport):
    """The transport that workers use for `redis://`."""

    Channel = Channel
