"""The values of the metrics' labels, which are fixed lists.

Knows names; nothing of how anything is counted.
"""

from enum import StrEnum

from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE


class ErrorKind(StrEnum):
    """The values of the label `kind` of `errors_total`."""

    EVALUATION = "evaluation"
    """The model gave no finite answer."""
    INTERNAL = "internal"
    """An unforeseen error; the log has its traceback."""
    REDIS = "redis"
    """Redis did not accept an outcome; the worker tried again."""


class Lane(StrEnum):
    """The values of the label `lane`: what a message was sent for."""

    LIVE = "live"
    """From an agent at work."""
    BACKFILL = "backfill"
    """From a file."""
    CANARY = "canary"
    """From the monitor, with a known answer. No other metric than `evaluations_total` counts it."""

    @property
    def queue(self) -> str:
        """The queue that its messages come through."""
        return BACKFILL_QUEUE if self is Lane.BACKFILL else LIVE_QUEUE


SENT = (Lane.LIVE, Lane.BACKFILL)
"""Lanes of messages that somebody other than the monitor has sent."""


class Reload(StrEnum):
    """The values of the label `result` of `reloads_total`: how a request to reload ended."""

    RELOADED = "reloaded"
    """Another checkpoint serves."""
    ALREADY_SERVING = "already_serving"
    """The checkpoint that is named has the digest of the one that serves."""
    REFUSED = "refused"
    """The checkpoint cannot be used; the one before serves on."""


class Request(StrEnum):
    """The values of the label `request` of `redis_request_seconds`."""

    TAKE = "take"
    """Asks for messages."""
    STORE = "store"
    """Stores outcomes and acknowledges messages."""
    RENEW = "renew"
    """Says that this worker still has its messages."""
    RESTORE = "restore"
    """Puts back what dead workers have left."""


class State(StrEnum):
    """The values of the label `state` of `state`: what a worker is doing."""

    STARTING = "starting"
    """It loads and tests its first checkpoint."""
    SERVING = "serving"
    """It takes messages, or would if it could: `ready` says whether it does."""
    RELOADING = "reloading"
    """It loads and tests another checkpoint beside the one that serves."""
    TESTING = "testing"
    """It tests its own answers while no message waits."""
    PAUSED = "paused"
    """It takes no messages, since its own answers are wrong."""
    STOPPING = "stopping"
    """It takes no more messages, and finishes those that it has."""


OUTCOMES = ("solved", "unsolved")
"""The values of the label `outcome` of an evaluation."""

BOOLEANS = ("true", "false")
"""The values of the labels `known` and `solved`."""

BOUNDS = ("low", "rate", "high")
"""The values of the label `bound`, in the order of `Evaluator.recorded_rate`."""
