"""The common parts of the servers: their command line, the network in static batches, and answers.

Knows examples and predictions; nothing of HTTP.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hrm.checkpoint import load_checkpoint
from hrm.inference.config import Inference
from hrm.model.batch import encode
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy, HRMExample

BATCH_SECONDS = 0.005
"""Time for which a peer waits for a batch to fill: about that of an ACT step on two CPU cores."""

WAITING = 1000
"""Requests that a server may have at once: more than are ever sent."""

Answer = dict[str, list[int]]
"""The body of a reply: `tokens`, one for each position."""


@dataclass(frozen=True)
class Options:
    """The command line of a server."""

    checkpoint: Path
    halting: HaltedBy
    slots: int
    """Examples in a batch, or in the engine's slots."""
    threads: int
    port: int

    @classmethod
    def parse(cls) -> "Options":
        parser = argparse.ArgumentParser()
        parser.add_argument("--checkpoint", type=Path)
        parser.add_argument("--halting", type=HaltedBy)
        for name in ("slots", "threads", "port"):
            parser.add_argument(f"--{name}", type=int)
        return cls(**vars(parser.parse_args()))

    def command(self) -> list[str]:
        return [text for name, value in asdict(self).items() for text in (f"--{name}", str(value))]


class StaticBatches:
    """The network as the peers call it: a batch begins together and is answered together.

    It has the engine's kernels, so the servers differ only in how they form batches and answer.
    """

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._halting = options.halting
        inference = Inference(slots=options.slots, halting=options.halting)
        self._network = inference.network(load_checkpoint(options.checkpoint), "cpu")

    def answers(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answer the examples of several requests, each the JSON of an example."""
        examples = [HRMExample.model_validate(request) for request in requests]
        batch = encode(examples, self._network.config)
        output = evaluate_batch(self._network, batch, halting=self._halting)
        return [{"tokens": tokens} for tokens in output.predictions.tolist()]
