"""A real worker process with the stub evaluator."""

import argparse
import os
import sys

from schemas import SQEHRMError
from tests.support.stubs import DIGEST, StubEvaluator
from worker.broker.keys import QUEUES
from worker.evaluator import Model
from worker.process.devices import Device
from worker.process.run import run
from worker.settings import Settings
from worker.telemetry.logs import configure_logging

parser = argparse.ArgumentParser()
parser.add_argument("--metrics-port", type=int)
parser.add_argument("--device")
parser.add_argument("--slots", type=int, default=4)
parser.add_argument("--every-token", action="store_true", help="verdicts as long as real ones")
options = parser.parse_args()
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
            lambda: StubEvaluator(options.slots, worker, every_token=options.every_token),
        ),
    )
except SQEHRMError as error:
    sys.exit(f"sqe-hrm: error: {error}")
sys.exit(status)
