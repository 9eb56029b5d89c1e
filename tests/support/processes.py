"""Worker processes for the tests: start one, look at it, end it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

REAL = (str(Path(sys.executable).with_name("sqe-hrm")), "worker")
"""The worker as an operator starts it."""

STUB = (sys.executable, "-m", "tests.support.stub_worker")
"""The worker around a stub for the evaluator, whose prompts say what it does."""

ROOT = Path(__file__).parents[2]

DEADLINE = 30.0
"""Seconds for anything to happen: far more than it takes, also beside other work."""


def wait_for(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.01)


@dataclass
class Worker:
    """A running worker."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, command: tuple[str, ...], folder: Path, redis_url: str, *options: str, **env: object
    ) -> Iterator[Self]:
        """The worker, serving its health side but perhaps not ready; killed at the end."""
        log = folder / f"worker-{time.monotonic_ns()}.log"
        variables = {f"SQE_{name.upper()}": str(value) for name, value in env.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SQE_")}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "--metrics-port", "0", *options],
                env={**clean, "PYTHONPATH": str(ROOT), "SQE_REDIS_URL": redis_url, **variables},
                cwd=folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        worker = cls(process, log)
        try:
            wait_for(worker._find_url, f"health server, in {log.read_text()}")
            yield worker
        finally:
            process.kill()
            process.wait()

    def _find_url(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"worker ended: {self.log.read_text()}")
        _, found, rest = self.log.read_text().partition("serving ")
        self.url = rest.partition("/metrics")[0]
        return bool(found and "/metrics" in rest)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=DEADLINE) as answer:  # noqa: S310 - http
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def wait_until_ready(self) -> Self:
        wait_for(self.is_ready, "ready")
        return self

    def metrics(self) -> dict[str, float]:
        """Every sample as `name{label=value,…}`, without the project's prefix."""
        return {
            sample.name.removeprefix("sqe_hrm_")
            + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): (
                sample.value
            )
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
        }

    def total(self, name: str) -> int:
        """The sum of a counter over its labels."""
        return int(
            sum(
                value
                for sample, value in self.metrics().items()
                if sample.partition("{")[0] == name
            )
        )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)
