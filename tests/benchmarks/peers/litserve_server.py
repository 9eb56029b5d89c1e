"""The network behind LitServe, with its dynamic batches."""

from typing import Any

import litserve

from tests.benchmarks.peers.serving import BATCH_SECONDS, Answer, Options, StaticBatches


class API(litserve.LitAPI):
    """Answers batches of requests."""

    def __init__(self, options: Options) -> None:
        super().__init__(max_batch_size=options.slots, batch_timeout=BATCH_SECONDS)
        self._options = options

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's
        self._batches = StaticBatches(self._options)

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, requests: list[dict[str, Any]]) -> list[Answer]:
        return self._batches.answers(requests)

    def unbatch(self, answers: list[Answer]) -> list[Answer]:
        return answers


def main() -> None:
    options = Options.parse()
    # At full load on a slow machine a request may wait longer than LitServe's 30 s.
    server = litserve.LitServer(
        API(options), accelerator="cpu", workers_per_device=1, timeout=False
    )
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
