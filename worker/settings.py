"""What an operator sets: `SQE_*` environment variables, checked once at the start.

Knows names, limits and defaults, each with its reason; reads nothing but the environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas import DEFAULT_MAX_MESSAGE_BYTES, SQEHRMError, first_problem

PREFIX = "SQE_"

RedisURL = Annotated[str, StringConstraints(pattern=r"^rediss?://[^/]")]


class SettingsError(SQEHRMError):
    """An environment variable has a value that cannot be used."""


class Settings(BaseModel):
    """Each field is the environment variable of its name: `redis_url` is `SQE_REDIS_URL`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: RedisURL | None = None
    """`redis://` or `rediss://`. Absent: the embedded server of this folder."""

    checkpoint: str = "sqe-demo"
    """Name or path of the checkpoint, where the command line gives none."""

    checkpoint_dir: Path = Path("checkpoints")
    """Folder in which a checkpoint's name is looked up, before the shipped checkpoints."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""

    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Messages evaluated at once. Absent: 4 a thread on cpu, 64 on cuda."""

    cached_predictions: Annotated[int, Field(ge=0, le=10_000_000)] = 100_000
    """Predictions kept for messages whose prompt, as the checkpoint sees it, was there before; they
    are then answered without inference. 0: none. The default takes at most 60 MB."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """Of torch on cpu. Absent: one per core."""

    max_message_bytes: Annotated[int, Field(ge=1)] = DEFAULT_MAX_MESSAGE_BYTES
    """Limit of prompt and completion together."""

    visibility_timeout: Annotated[float, Field(ge=1)] = 300.0
    """Seconds until a dead worker's messages are delivered to another. A live worker renews its
    messages four times within it, so this need not cover an evaluation or a batch; it has to cover
    a pause of the whole process (a stopped container, a swap storm), and a Redis restart."""

    result_expires: Annotated[int, Field(ge=1)] = 3600
    """Seconds an outcome can be fetched. A million of them take about 1 GB of Redis."""

    counted_expires: Annotated[int, Field(ge=1)] = 86_400
    """Seconds within which a message delivered again is not counted again: a day outlasts every
    redelivery, and agents that send again after an outage."""

    failures_maxlen: Annotated[int, Field(ge=1)] = 10_000
    """Entries of the failure stream, about. The oldest go first."""

    dead_letters_maxlen: Annotated[int, Field(ge=1)] = 10_000
    """Entries of the dead-letter stream, about. The oldest go first."""

    metrics_host: str = "0.0.0.0"  # noqa: S104 - Prometheus scrapes from another machine
    """Address of /metrics, /healthz and /readyz, which hold no message text."""

    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 9108
    """0 takes a free one."""

    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 25.0
    """From SIGTERM until unfinished messages go back to the queue: within the 30 s that Kubernetes
    leaves before it kills."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:  # noqa: ANN401
        """The settings in `environ`; an override that is not None wins.

        An empty variable counts as absent. Raises `SettingsError`, which names the variable.
        """
        values: dict[str, Any] = {
            name: environ[PREFIX + name.upper()]
            for name in cls.model_fields
            if environ.get(PREFIX + name.upper())
        }
        values.update({name: value for name, value in overrides.items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = first_problem(error)
            variable = PREFIX + problem.field.upper()
            raise SettingsError(f"{variable}: {_fix(problem.message)}") from None


def _fix(message: str) -> str:
    """Pydantic's message, except that a pattern says less than an example."""
    if "match pattern" in message:
        return "give a URL such as redis://localhost:6379/0 (or rediss:// for TLS)"
    return message[:1].lower() + message[1:]
