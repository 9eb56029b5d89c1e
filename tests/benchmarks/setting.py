"""What is measured where: sizes, hardware, networks and examples."""

import platform
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from hrm.checkpoint import Checkpoint, load_checkpoint
from hrm.data.conversion import Converter
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from schemas import Difficulty, ExampleMetadata, HRMExample
from worker.demo.traffic import read_accepted

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

FULL_WIDTH = HRMConfig(num_puzzle_identifiers=1000)
"""The sizes of the v9 checkpoints, whose rows of puzzles cost memory only."""

DTYPES = (torch.float32, torch.bfloat16)


THREADS = torch.get_num_threads()
"""Of the CPU, for whatever is measured."""


@dataclass(frozen=True)
class Setting:
    """The defaults are for two CPU cores: some eight minutes for all benchmarks."""

    device: str = "cpu"
    rounds: int = 5
    """Paired runs whose median is shown."""
    slots: int = 8
    examples: int = 16
    """Of a run in which each takes every ACT step; a multiple of `slots`."""
    halting_examples: int = 192
    """Of a run under the q rule; a multiple of `slots`."""
    single_examples: int = 4
    """Of a run with one example at a time."""
    requests: int = 100
    """Of a run with arrivals of their own."""
    known: int | None = None
    """Of the known messages so many of the first, where only answers count, or all."""
    unknown: int = 150
    """Unknown examples of each kind, there."""
    messages: int = 20_000
    """Of a converted file: a third of a second and more a run, so that the clock's noise stays far
    below it and most words have been met, as in any file whose speed matters."""
    seconds: float = 0.5
    """Of a run of one matrix product."""
    config: HRMConfig = FULL_WIDTH
    checkpoints: tuple[Path, ...] = (CHECKPOINTS / "sqe-demo", CHECKPOINTS / "sqe-demo-600")
    """Two of one conversion; the first has its messages beside it."""

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
    """Only to see that everything works: a minute on two cores."""
    return Setting(
        device=setting.device,
        rounds=1,
        slots=4,
        examples=4,
        halting_examples=32,
        single_examples=1,
        requests=20,
        known=8,
        unknown=4,
        messages=5_000,
        seconds=0.05,
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


def random_network(setting: Setting, dtype: torch.dtype) -> HRM:
    """The same weights at every call."""
    torch.manual_seed(0)
    return HRM(setting.config, dtype).to(setting.device).eval()


def random_examples(config: HRMConfig, count: int, seed: int = 0) -> list[HRMExample]:
    """Any tokens, at any length, for any puzzle."""
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
    """Prompts and completions that the checkpoint was trained on."""
    return read_accepted(checkpoint.path.parent / "messages.jsonl")


def known_examples(checkpoint: Checkpoint, count: int | None = None) -> list[HRMExample]:
    """Those of the accepted messages; `count` of them, repeated where there are fewer, shuffled."""
    converter = Converter(checkpoint.conversion)
    examples = [converter.convert(*message) for message in accepted_messages(checkpoint)]
    if count is None:
        return examples
    repeated = (examples * -(-count // len(examples)))[:count]
    random.Random(0).shuffle(repeated)
    return repeated
