"""The common parts of the learning experiments: options, sizes, rounds, figures and output.

Knows networks and trainers; nothing of the pairs that are learned.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hrm.evaluation.measurement import ExampleFigures
from hrm.model.config import HRMConfig, TokenHead
from hrm.training.trainer import Trainer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every experiment; each sets the defaults that are its own."""
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--halt-max-steps", type=int, default=16)
    parser.add_argument("--hashed-tokens", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-every", type=int)
    parser.add_argument("--output", type=Path, help="file to append the lines to")


def given(options: argparse.Namespace) -> dict[str, object]:
    """The options that a figure depends on."""
    return {key: value for key, value in vars(options).items() if key != "output"}


def write(lines: Iterable[dict[str, object]], output: Path | None) -> None:
    """Print lines as JSON when they come, and append them to `output`."""
    for line in lines:
        text = json.dumps(line)
        print(text, flush=True)  # noqa: T201 - the result
        if output is not None:
            with output.open("a") as file:
                file.write(text + "\n")


def network_config(
    options: argparse.Namespace,
    *,
    vocab_size: int,
    seq_len: int,
    puzzles: int,
    token_head: TokenHead = TokenHead.SOFTMAX,
    puzzle_emb_ndim: int | None = None,
) -> HRMConfig:
    """Build the sizes of the network; its puzzle embeddings are as wide as it is by default."""
    return HRMConfig(
        vocab_size=vocab_size,
        token_head=token_head,
        seq_len=seq_len,
        hidden_size=options.hidden_size,
        puzzle_emb_ndim=options.hidden_size if puzzle_emb_ndim is None else puzzle_emb_ndim,
        H_layers=options.layers,
        L_layers=options.layers,
        num_puzzle_identifiers=puzzles,
        halt_max_steps=options.halt_max_steps,
        halt_exploration_prob=0.5,
    )


def rounds(trainer: Trainer, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Train, and yield the line for each measurement with the seconds of training so far."""
    seconds = 0.0
    while trainer.step_count < options.steps:
        started = time.monotonic()
        for _ in range(min(options.measure_every, options.steps - trainer.step_count)):
            report = trainer.step()
        seconds += time.monotonic() - started
        yield {"step": report.step, "loss": report.loss, "seconds": seconds}


def figures(found: ExampleFigures) -> dict[str, float]:
    """Summarise what was measured of some messages."""
    correctness = found.correctness
    return {
        "solved": int(correctness.solved.sum()),
        "of": len(correctness.solved),
        "tokens": round(int(correctness.correct.sum()) / int(correctness.targets.sum()), 4),
        "q_right": round(float(found.q_right.double().mean()), 4),
        "steps": round(float(found.act_steps.double().mean()), 2),
    }
