"""Settings of the benchmarks: sizes, hardware, networks and examples."""

import platform
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from hrm.checkpoint import Checkpoint, load_checkpoint
from hrm.data.conversion import Converter
from hrm.kernels import without_int8
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from schemas import Difficulty, ExampleMetadata, HRMExample
from worker.demo.traffic import read_accepted

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

FULL_WIDTH = HRMConfig(num_puzzle_identifiers=1000)
"""Sizes of the v9 checkpoints, with fewer puzzles, which cost only memory."""

DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of activations."""

THREADS = torch.get_num_threads()
"""CPU threads for everything that is measured."""


@dataclass(frozen=True)
class Setting:
    """Sizes of a run. The defaults suit two CPU cores, which take about eight minutes in all."""

    device: str = "cpu"
    rounds: int = 5
    """Number of paired runs; their median is shown."""
    slots: int = 8
    examples: int = 16
    """Examples in a run with every ACT step; a multiple of `slots`."""
    halting_examples: int = 192
    """Examples in a run under the q rule; a multiple of `slots`."""
    single_examples: int = 4
    """Examples in a run with one example at a time."""
    requests: int = 100
    """Requests in a run in which they arrive at their own times."""
    live: int = 40
    """Live messages in a run beside a backfill."""
    backfill: int = 20_000
    """Messages of that backfill: more than are evaluated in a run."""
    singles: int = 40_000
    """Single messages that wait when a worker starts and needs no inference."""
    batched: int = 60_000
    """The same, in batches."""
    halting_messages: int = 3_000
    """Messages that wait when a worker starts, under the q rule and without a cache."""
    fixed_messages: int = 640
    """The same with every ACT step."""
    turns: int = 8
    """Turns of an engine and of a worker that run one after the other."""
    known: int | None = None
    """Known messages in runs that compare answers: the first ones, or all if None."""
    unknown: int = 150
    """Unknown examples of each kind in runs that compare answers."""
    messages: int = 20_000
    """Messages in a converted file. A run takes at least a third of a second, so that the clock's
    noise is negligible and most words have occurred before, as in every file whose speed
    matters."""
    training_batch: int = 33
    """Examples in a training step."""
    training_steps: int = 12
    """Steps of each training."""
    seconds: float = 0.5
    """Duration of a run of one matrix product."""
    markers: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of markers in Redis; the first is also that of results."""
    scale_messages: int = 4_000
    """Messages whose cost for Redis is measured."""
    scale_workers: int = 100
    """Workers of a fleet that only waits and is paced."""
    scale_rate: float = 0.5
    """Messages a second that each of them evaluates: so few that two cores suffice for all."""
    scale_seconds: float = 10.0
    """Time for which the fleet is idle, and under each load."""
    config: HRMConfig = FULL_WIDTH
    checkpoints: tuple[Path, ...] = (CHECKPOINTS / "sqe-demo", CHECKPOINTS / "sqe-demo-600")
    """Two checkpoints with the same conversion; the first has its messages beside it."""

    @property
    def is_cuda(self) -> bool:
        return self.device != "cpu"

    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.checkpoints[0])


ON_GPU = Setting(
    slots=512,
    examples=8192,
    halting_examples=16_384,
    single_examples=8,
    requests=4000,
    unknown=1000,
)


def quick(setting: Setting) -> Setting:
    """Tiny sizes, to check that everything works: a minute on two cores."""
    return Setting(
        device=setting.device,
        rounds=1,
        slots=4,
        examples=4,
        halting_examples=32,
        single_examples=1,
        requests=20,
        live=3,
        backfill=512,
        singles=1_000,
        batched=5_120,
        halting_messages=512,
        fixed_messages=512,
        turns=1,
        known=8,
        unknown=4,
        messages=5_000,
        training_batch=4,
        training_steps=2,
        seconds=0.05,
        markers=(1_000, 10_000),
        scale_messages=256,
        scale_workers=4,
        scale_rate=20.0,
        scale_seconds=0.5,
    )


def hardware(device: str) -> str:
    if device != "cpu":
        command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return f"{torch.cuda.get_device_name(device)}, driver {answer.split()[0]}"
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {THREADS} threads"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def engine_dtypes(config: HRMConfig, device: str) -> tuple[torch.dtype, ...]:
    """Dtypes in which engines compute networks of `config` on `device`, float32 first."""
    if without_int8(HRM(config).to(device)):
        return DTYPES
    return (*DTYPES, torch.int8)


def random_network(setting: Setting, dtype: torch.dtype) -> HRM:
    """Network with random weights, the same on every call."""
    torch.manual_seed(0)
    return HRM(setting.config, dtype).to(setting.device).eval()


def random_examples(config: HRMConfig, count: int, seed: int = 0) -> list[HRMExample]:
    """Examples with random tokens, lengths and puzzles."""
    source = random.Random(seed)
    metadata = ExampleMetadata(prompt_length=1, completion_length=1, difficulty=Difficulty.EASY)

    def sequence() -> tuple[int, ...]:
        length = source.randint(2, config.seq_len)
        return tuple(source.choices(range(config.vocab_size), k=length))

    return [
        HRMExample(
            puzzle_id=source.randrange(config.num_puzzle_identifiers),
            input_sequence=sequence(),
            target_sequence=sequence(),
            solution_steps=(),
            metadata=metadata,
        )
        for _ in range(count)
    ]


def accepted_messages(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Prompts and completions on which the checkpoint was trained."""
    return read_accepted(checkpoint.path.parent / "messages.jsonl")


def known_examples(checkpoint: Checkpoint, count: int | None = None) -> list[HRMExample]:
    """Examples of the accepted messages: all in order, or `count` shuffled ones, with repeats if
    there are fewer.
    """
    converter = Converter(checkpoint.conversion)
    examples = [converter.convert(*message) for message in accepted_messages(checkpoint)]
    if count is None:
        return examples
    repeated = (examples * -(-count // len(examples)))[:count]
    random.Random(0).shuffle(repeated)
    return repeated
