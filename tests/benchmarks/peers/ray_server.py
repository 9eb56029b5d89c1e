"""The network behind Ray Serve, with its dynamic batches."""

import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.benchmarks.peers.serving import BATCH_SECONDS, WAITING, Answer, Options, StaticBatches

STORE_BYTES = 100_000_000
"""Memory for Ray's objects, of which these requests need none."""


class Predictions:
    """Answers batches of requests."""

    def __init__(self, options: Options) -> None:
        self._batches = StaticBatches(options)
        self.predict.set_max_batch_size(options.slots)

    @serve.batch(batch_wait_timeout_s=BATCH_SECONDS)
    async def predict(self, requests: list[dict[str, Any]]) -> list[Answer]:
        return self._batches.answers(requests)

    async def __call__(self, request: Request) -> Answer:
        answer: Answer = await self.predict(await request.json())
        return answer


def main() -> None:
    options = Options.parse()
    ray.init(
        num_cpus=options.threads,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    deployment = serve.deployment(
        max_ongoing_requests=WAITING, ray_actor_options={"num_cpus": options.threads}
    )(Predictions)
    serve.run(deployment.bind(options), route_prefix="/predict")
    signal.pause()


if __name__ == "__main__":
    main()
