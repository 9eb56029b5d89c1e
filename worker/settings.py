"""The operator's settings: `SQE_*` environment variables, checked once at the start.

Knows names, limits and defaults, each with its reason; reads nothing but the environment.
"""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas import DEFAULT_MAX_MESSAGE_BYTES, SQEHRMError, first_problem

PREFIX = "SQE_"

RedisURL = Annotated[str, StringConstraints(pattern=r"^((rediss?|sentinel)://[^/]|unix://)")]


class SettingsError(SQEHRMError):
    """An environment variable has an unusable value."""


class Settings(BaseModel):
    """The settings. Each field is an environment variable: `redis_url` is `SQE_REDIS_URL`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: RedisURL | None = None
    """URL with `redis:`, `rediss:`, `unix:` or `sentinel:`. If absent, the embedded server of this
    folder is used."""

    namespace: str = ""
    """Beginning of every key, so that several deployments share a Redis. `worker.broker.keys` says
    what may be in it."""

    wait_replicas: Annotated[int, Field(ge=0)] = 0
    """Replicas of Redis that have to confirm a message before `submit` returns, and an outcome
    before its message is acknowledged. A write then takes at least a round trip to a replica."""

    checkpoint: str = "sqe-demo"
    """Name or path of the checkpoint, if the command line gives none."""

    checkpoint_dir: Path = Path("checkpoints")
    """Folder to search for a checkpoint's name, before the shipped checkpoints."""

    device: str = "cpu"
    """Device to evaluate on: `cpu`, `cuda` or `cuda:N`."""

    devices: str | None = None
    """Devices of several workers, as `worker.fleet.members` reads them. If absent, one worker runs,
    on `device`."""

    halting: Literal["auto", "max_steps", "q"] = "auto"
    """When a worker's message is done: after all its steps, as soon as the Q head halts it, or
    whichever the checkpoint's recorded figures support."""

    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Messages evaluated at once. If absent, 4 per thread on cpu and 64 on cuda."""

    cached_predictions: Annotated[int, Field(ge=0, le=10_000_000)] = 100_000
    """Predictions to keep. A message whose prompt looks to the checkpoint like an earlier one is
    answered from them, without inference. 0 keeps none. The default takes at most 60 MB."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch on cpu. If absent, one per core."""

    cpu_kernels: Literal["auto", "off"] = "auto"
    """Whether to use the C++ kernels if they can be built. `hrm.kernels` reads the variable itself;
    here its value is checked."""

    gpu_kernels: Literal["auto", "compiled", "off"] = "auto"
    """Which GPU kernels to use: the fastest, none in Triton, or none. Read as `cpu_kernels` is."""

    max_message_bytes: Annotated[int, Field(ge=1)] = DEFAULT_MAX_MESSAGE_BYTES
    """Limit of prompt and completion together, in bytes of UTF-8."""

    max_item_bytes: Annotated[int, Field(ge=1)] = 8 * 1024 * 1024
    """Limit of an item of a queue, which is a message or a batch in Celery's envelope. A longer one
    becomes a dead letter without leaving Redis. Batches of `worker.client` have at most 4 MB.
    Reading an item of nothing but brackets takes 26 times its length, here 220 MB."""

    visibility_timeout: Annotated[float, Field(ge=1)] = 300.0
    """Seconds until a dead worker's messages are delivered to another. A live worker renews its
    messages four times within this time, so it need not cover an evaluation or a batch. It has to
    cover a pause of the whole process (a stopped container, a swap storm) and a Redis restart."""

    result_expires: Annotated[int, Field(ge=1)] = 3600
    """Seconds for which an outcome can be fetched, unless the sender says otherwise. A million
    outcomes take about 1.3 GB of Redis."""

    result_expires_max: Annotated[int, Field(ge=1)] = 86_400
    """The most seconds that a sender can choose for its outcomes; more counts as this."""

    counted_expires: Annotated[int, Field(ge=1)] = 86_400
    """Seconds for which a message that is delivered again is not counted again, and at most half
    of them more. A day outlasts every redelivery, and also agents that send again after an outage.
    Workers with different values do not see each other's markers."""

    failures_maxbytes: Annotated[int, Field(ge=4 * 1024 * 1024)] = 64 * 1024 * 1024
    """Most bytes of the failure stream, counted as the lengths of its entries' fields, which is
    about what Redis takes for them. The oldest entries are dropped first, one part in 34 at once;
    no entry is longer than that part of the least."""

    failures_per_hour: Annotated[int, Field(ge=1)] = 25
    """Failures of one agent and pattern that are all kept in an hour. Of those beyond, the 50th,
    100th, 200th, ... are kept with this default, and the others counted."""

    dead_letters_maxbytes: Annotated[int, Field(ge=4 * 1024 * 1024)] = 64 * 1024 * 1024
    """Most bytes of the dead-letter stream, counted likewise. The oldest are dropped first."""

    metrics_host: str = "127.0.0.1"
    """Address of /metrics, /healthz and /readyz. They contain no message text, but need no password
    either. 0.0.0.0 opens them to other machines."""

    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 9108
    """Port of /metrics, /healthz and /readyz. 0 takes a free one."""

    monitor_port: Annotated[int, Field(ge=0, le=65_535)] = 9109
    """Port of the monitor's /metrics, /healthz and /readyz. 0 takes a free one."""

    canary_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two messages with a known answer that the monitor sends. 0 sends none."""

    celery_events: Literal["on", "off"] = "off"
    """Whether to answer Celery's `inspect` commands and publish its events. Off by default: anyone
    who may publish in Redis could ask, and each task has three events."""

    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 25.0
    """Seconds from SIGTERM until unfinished messages go back to the queue. The default is within
    the 30 s after which Kubernetes kills the process."""

    stall_seconds: Annotated[float, Field(ge=1)] = 120.0
    """Seconds after which an engine that has not finished an ACT step hangs, and its worker ends.
    A step takes milliseconds to seconds, and compiling happens before the first. After a lack of
    the device's memory, one may capture the steps of a GPU again, which takes some seconds."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:  # noqa: ANN401
        """Read the settings from `environ`; an override that is not None takes precedence.

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


def unknown_variables(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield one line for each variable that looks like a setting and is none.

    They are no errors: for a service `sqe-redis`, Kubernetes sets SQE_REDIS_SERVICE_HOST in each
    pod, and a variable may be meant for another version.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{name}: no such setting{hint}"


def _fix(message: str) -> str:
    """Word pydantic's message as a fix; an example replaces a pattern."""
    if "match pattern" in message:
        return "give a URL such as redis://localhost:6379/0 (or rediss:, unix:, sentinel:)"
    return message[:1].lower() + message[1:]
