"""The engine beside the plain loop, in paired runs, with the shipped checkpoint.

`python -m tests.benchmarks.bench_engine --device cuda:0` measures on a GPU. Before anything is
timed, every prediction is held against the plain loop's in float32 on the CPU.
"""

import argparse
import itertools
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from hrm.batch import encode
from hrm.checkpoint import load_checkpoint
from hrm.conversion import Converter
from hrm.engine import Engine
from hrm.files import RefusedLine, read_messages
from hrm.network import HRM
from hrm.reference_loop import evaluate_batch
from schemas import HaltedBy, HRMExample

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "sqe-demo"

PAIRS = 3
"""Paired runs; their median is shown."""

TIMED = {"cpu": 24, "cuda": 2048}
"""Examples of one run: a few seconds on two cores, and on a GPU."""

SLOTS = {"cpu": 8, "cuda": 256}


def run(device: str = "cpu") -> str:
    """The table, as Markdown."""
    checkpoint = load_checkpoint(CHECKPOINT)
    converter = Converter(checkpoint.conversion)
    examples: list[HRMExample] = []
    with (CHECKPOINT / "messages.jsonl").open("rb") as file:
        for index, message in read_messages(file):
            assert not isinstance(message, RefusedLine)
            examples.append(
                converter.convert(message.prompt, message.completion, message.puzzle_id, index)
            )
    kind = device.partition(":")[0]
    timed = list(itertools.islice(itertools.cycle(examples), TIMED[kind]))
    rows = [
        "| dtype | halting | slots | plain loop, examples/s | engine, examples/s | ratio | equal |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    reference = checkpoint.build()
    for dtype in (torch.float32, torch.bfloat16):
        network = checkpoint.build(device=device, forward_dtype=dtype)
        rows += [
            _row(network, reference, examples, timed, halting=halting, slots=SLOTS[kind])
            for halting in HaltedBy
        ]
    hardware = torch.cuda.get_device_name(device) if kind == "cuda" else _processor()
    date = datetime.now(UTC).date()
    title = f"Engine and plain loop, {hardware}, torch {torch.__version__}, {date}, sqe-demo"
    note = "`equal`: predictions equal to those of the plain loop in float32 on the CPU."
    return "\n".join([title, "", *rows, "", note, ""])


def _row(
    network: HRM,
    reference: HRM,
    examples: list[HRMExample],
    timed: list[HRMExample],
    *,
    halting: HaltedBy,
    slots: int,
) -> str:
    expected = evaluate_batch(reference, encode(examples, reference.config), halting=halting)
    engine = Engine(network, slots=slots, halting=halting)
    futures = [engine.submit(example) for example in examples]
    equal = 0
    for example, future, tokens in zip(
        examples, futures, expected.predictions.tolist(), strict=True
    ):
        length = len(example.target_sequence)
        equal += list(future.result().tokens[:length]) == tokens[:length]
    loops, engines = [], []
    for _ in range(PAIRS):
        loops.append(_loop_rate(network, timed, halting, slots))
        started = time.perf_counter()
        for future in [engine.submit(example) for example in timed]:
            future.result()
        engines.append(len(timed) / (time.perf_counter() - started))
    engine.close()
    ratio = statistics.median(a / b for a, b in zip(engines, loops, strict=True))
    name = str(network.forward_dtype).removeprefix("torch.")
    return (
        f"| {name} | {halting} | {slots} | {statistics.median(loops):,.1f} | "
        f"{statistics.median(engines):,.1f} | {ratio:.2f} | {equal}/{len(examples)} |"
    )


def _loop_rate(
    network: HRM, examples: list[HRMExample], halting: HaltedBy, batch_size: int
) -> float:
    started = time.perf_counter()
    for start in range(0, len(examples), batch_size):
        batch = encode(examples[start : start + batch_size], network.config)
        output = evaluate_batch(network, batch.to(network.H_init.device), halting=halting)
        output.predictions.tolist()
    return len(examples) / (time.perf_counter() - started)


def _processor() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    print(run(parser.parse_args().device))  # noqa: T201 - the table
