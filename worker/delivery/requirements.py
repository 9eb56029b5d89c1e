"""A worker's requirements of Redis: a version, and permissions for the commands it runs.

One script asks Redis about every command and key without running any of them. It is a script that
may write, so a replica refuses it as it would refuse the others. Knows commands and keys; nothing
of when they run.
"""

import json
from collections.abc import Iterable

import redis

from worker.broker.errors import RedisUnfit, describe, is_lasting
from worker.broker.keys import (
    AGENTS,
    BATCHED,
    CANARIES,
    COUNTED,
    DEAD_LETTERS,
    EVIDENCE,
    FAILURES,
    FAULTS,
    QUEUES,
    RELOAD,
    UNACKED,
    UNACKED_INDEX,
    Namespace,
    attempt,
    partial,
    queue_lists,
    reload_answers,
    result,
    suspects,
)
from worker.broker.tls import is_refused_certificate
from worker.broker.version import check_redis_version
from worker.delivery.evidence import MARKED
from worker.delivery.scripts import Script
from worker.settings import Settings

SHOWN = 6
"""Most missing permissions to name in an error; one wrong pattern of keys lacks dozens."""

_ANY = "*"
"""Stands for any id in a name, as in a pattern of Redis's access rules."""

_LISTS = tuple(key for queue in QUEUES for key in (*queue_lists(queue), suspects(queue)))
_MARKERS = f"{COUNTED}:{_ANY}"
_HOURS = f"{EVIDENCE}:{_ANY}"
_STREAMS = (FAILURES, DEAD_LETTERS)
_MARKS = tuple(stream + MARKED for stream in _STREAMS)

NEEDED: dict[str, tuple[str, ...]] = {
    # The scripts that move items, and the backlog.
    "LINDEX": _LISTS,
    "LTRIM": _LISTS,
    "LLEN": _LISTS,
    "LPUSH": _LISTS,
    "RPUSH": (*_LISTS, *_MARKS),
    "HGET": (UNACKED, FAULTS),
    "HGETALL": (partial(_ANY),),
    "HSET": (UNACKED, FAULTS, partial(_ANY), AGENTS, EVIDENCE),
    "HDEL": (UNACKED, FAULTS, AGENTS, BATCHED),
    "HKEYS": (UNACKED,),
    "HEXISTS": (UNACKED, FAULTS, AGENTS),
    "HINCRBY": (AGENTS, BATCHED, EVIDENCE, _HOURS),
    "EXISTS": (FAULTS, *_LISTS),
    "EXPIRE": (FAULTS, partial(_ANY), _HOURS),
    "ZADD": (UNACKED_INDEX,),
    "ZREM": (UNACKED_INDEX,),
    "ZRANGE": (UNACKED_INDEX,),
    # The scripts that store outcomes.
    "MGET": (_MARKERS,),
    "SISMEMBER": (_MARKERS, CANARIES),
    "SADD": (_MARKERS,),
    "SREM": (_MARKERS,),
    "SMEMBERS": (_MARKERS,),
    "INCRBY": (_MARKERS,),
    "EXPIREAT": (_MARKERS,),
    "SET": (attempt(_ANY), result(_ANY)),
    "GET": (attempt(_ANY),),
    "DEL": (partial(_ANY),),
    "XADD": _STREAMS,
    "XTRIM": _STREAMS,
    "LPOP": _MARKS,
    "PUBLISH": (result(_ANY), reload_answers(_ANY)),
    # Requests to reload.
    "SUBSCRIBE": (RELOAD,),
}
"""The commands that have keys or channels, with all of them."""

WITHOUT_KEYS: tuple[tuple[str, ...], ...] = (
    ("EVAL", "", "0"),
    ("EVALSHA", "", "0"),
    ("SCRIPT", "LOAD", ""),
    ("TIME",),
    ("PING",),
)
"""The other commands, each with arguments that make it complete."""

_ARGUMENTS = {
    "LINDEX": ["-1"],
    "LTRIM": ["0", "-1"],
    "LPUSH": [""],
    "RPUSH": [""],
    "HGET": [""],
    "HSET": ["", ""],
    "HDEL": [""],
    "HEXISTS": [""],
    "HINCRBY": ["", "1"],
    "EXPIRE": ["1"],
    "ZADD": ["0", ""],
    "ZREM": [""],
    "ZRANGE": ["0", "0"],
    "SISMEMBER": [""],
    "SADD": [""],
    "SREM": [""],
    "INCRBY": ["1"],
    "EXPIREAT": ["1"],
    "SET": [""],
    "XADD": ["*", "", ""],
    "XTRIM": ["MINID", "0"],
    "PUBLISH": [""],
}
"""The arguments that follow the key of a complete command."""

CHECK = Script("""#!lua flags=allow-oom
-- ARGV: a list of commands as JSON. Returns: the places of those that this user may not run.
local refused = {}
for place, command in ipairs(cjson.decode(ARGV[1])) do
  if not redis.acl_check_cmd(unpack(command)) then table.insert(refused, place) end
end
return refused
""")


class Requirements:
    """The permissions and the version that a worker with these settings needs of Redis."""

    def __init__(self, settings: Settings) -> None:
        namespace = Namespace(settings.namespace)
        self._commands = [
            *WITHOUT_KEYS,
            *([("WAIT", "1", "1")] if settings.wait_replicas else []),
            *(
                (command, namespace.key(key), *_ARGUMENTS.get(command, ()))
                for command, keys in NEEDED.items()
                for key in keys
            ),
        ]
        self._text = json.dumps(self._commands)

    def check(self, client: redis.Redis) -> None:
        """Make sure that Redis is recent enough and permits everything a worker does.

        Raises:
            RedisUnfit: It is not or does not; or it refuses this user altogether.
            redis.RedisError: Redis cannot be asked at the moment.
        """
        try:
            check_redis_version(client)
            self.check_permissions(client)
        except redis.RedisError as error:
            if is_refused_certificate(error):
                raise RedisUnfit(describe(error)) from None
            if is_lasting(error):
                raise RedisUnfit(f"{describe(error)}: check the user in SQE_REDIS_URL") from None
            raise

    def check_permissions(self, client: redis.Redis) -> None:
        """Make sure that the connection leads to a primary that permits everything a worker does.

        Raises as `check`, except that a refusal of the script itself is a `redis.RedisError`.
        """
        refused = [self._commands[place - 1] for place in CHECK(client, [], self._text)]
        if refused:
            user = client.connection_pool.connection_kwargs.get("username") or "default"
            raise RedisUnfit(
                f"the Redis user {user!r} may not run {_named(refused)}: permit it with ACL SETUSER"
            )


def _named(refused: Iterable[tuple[str, ...]]) -> str:
    names = [
        f"{name} on {rest[0]!r}" if name in NEEDED else " ".join((name, *filter(str.isalpha, rest)))
        for name, *rest in refused
    ]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
