"""A client of the servers: many requests at once, or requests at random times.

Knows HTTP and times; nothing of what is in a request.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from tests.benchmarks.runs import Run

TIMEOUT = aiohttp.ClientTimeout(total=300)
"""Longest time for an answer, also from a server that cannot keep up."""


@dataclass(frozen=True)
class Reply:
    seconds: float
    """From the time at which the request was due until its answer."""
    tokens: list[int]


async def _send(client: aiohttp.ClientSession, url: str, body: bytes, due: float) -> Reply:
    async with client.post(url, data=body, headers={"Content-Type": "application/json"}) as reply:
        reply.raise_for_status()
        tokens = (await reply.json())["tokens"]
    return Reply(time.perf_counter() - due, tokens)


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0))


def is_serving(url: str, body: bytes) -> bool:
    """Whether the server answers a request."""

    async def ask() -> None:
        async with _client() as client:
            await _send(client, url, body, 0.0)

    try:
        asyncio.run(ask())
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True


def full_load(url: str, bodies: Sequence[bytes], in_flight: int) -> Run:
    """Send requests, `in_flight` at a time. The last ones, with fewer under way, are not timed."""
    ended: list[float] = []
    tokens: list[tuple[int, ...]] = [()] * len(bodies)
    places = iter(range(len(bodies)))

    async def send_some(client: aiohttp.ClientSession) -> None:
        for place in places:
            reply = await _send(client, url, bodies[place], time.perf_counter())
            ended.append(time.perf_counter())
            tokens[place] = tuple(reply.tokens)

    async def send_all() -> float:
        started = time.perf_counter()
        async with _client() as client:
            await asyncio.gather(*(send_some(client) for _ in range(in_flight)))
        return started

    started = asyncio.run(send_all())
    timed = max(1, len(bodies) - in_flight)
    return Run(timed / (ended[timed - 1] - started), tokens, steps=[])


def at_random(url: str, bodies: Sequence[bytes], rate: float, seed: int) -> list[float]:
    """Send requests at random times (Poisson), `rate` a second; returns their durations."""
    source = random.Random(seed)

    async def send_all() -> list[Reply]:
        async with _client() as client:
            due, sent = time.perf_counter(), []
            for body in bodies:
                due += source.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sent.append(asyncio.create_task(_send(client, url, body, due)))
            return await asyncio.gather(*sent)

    return [reply.seconds for reply in asyncio.run(send_all())]
