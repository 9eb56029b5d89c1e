"""A real worker process with the stub evaluator."""

import argparse
import os
import sys
from pathlib import Path

from prometheus_client import generate_latest

from schemas import SQEHRMError
from tests.support.stubs import DIGEST, StubEvaluator
from worker.broker.keys import QUEUES
from worker.evaluator import Model
from worker.process.devices import Device
from worker.process.run import run
from worker.settings import Settings
from worker.telemetry.logs import configure_logging
from worker.telemetry.metrics import Metrics

parser = argparse.ArgumentParser()
parser.add_argument("--metrics-port", type=int)
parser.add_argument("--device")
parser.add_argument("--slots", type=int, default=4)
parser.add_argument("--every-token", action="store_true", help="verdicts as long as real ones")
parser.add_argument("--last-page", type=Path, help="file for the metrics at the end")
options = parser.parse_args()
if options.last_page is not None:
    made: list[Metrics] = []
    begin = Metrics.__init__

    def begin_and_note(self: Metrics) -> None:
        begin(self)
        made.append(self)

    Metrics.__init__ = begin_and_note  # type: ignore[method-assign]
configure_logging()
try:
    status = run(
        redis_url=os.environ["SQE_REDIS_URL"],
        settings=Settings.from_env(metrics_port=options.metrics_port),
        device=Device("cpu", "cpu"),
        queues=QUEUES,
        read_model=lambda worker, _: Model(
            "stub",
            DIGEST,
            "",
            lambda: StubEvaluator(options.slots, worker, every_token=options.every_token),
        ),
    )
except SQEHRMError as error:
    sys.exit(f"sqe-hrm: error: {error}")
if options.last_page is not None:
    options.last_page.write_bytes(generate_latest(made[0].registry))
sys.exit(status)
