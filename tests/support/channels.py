"""A worker's channel without Celery's event loop."""

from types import SimpleNamespace
from typing import Any

from redis.connection import AbstractConnection

from worker.broker.keys import NO_NAMESPACE, QUEUES
from worker.delivery.hand import Hand
from worker.delivery.transport import Channel, OnTaken, QoS


def bare_channel(
    connection: AbstractConnection, hand: Hand, on_taken: OnTaken, max_item_bytes: int
) -> Channel:
    """Build a channel that requests messages of both queues on `connection`."""
    channel = Channel.__new__(Channel)
    vars(channel).update(
        client=SimpleNamespace(connection=connection),
        _active_queues=list(QUEUES),
        active_fanout_queues=frozenset(),
        _queue_cycle=SimpleNamespace(consume=lambda _: list(QUEUES)),
        _flush_brpop_reauth=lambda: None,
        namespace=NO_NAMESPACE,
        hand=hand,
        on_reply=lambda: None,
        on_request=lambda _: None,
        on_taken=on_taken,
        max_item_bytes=max_item_bytes,
    )
    return channel


def ask(channel: Channel) -> None:
    """Send a request if it is time for one, as the event loop does before it waits."""
    qos: Any = SimpleNamespace(channel=channel)
    if QoS.can_consume(qos) and not channel._in_poll:
        channel._brpop_start()
