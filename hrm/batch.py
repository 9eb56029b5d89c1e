"""Examples as tensors: pads sequences to the network's length. Knows no model and no files."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.config import IGNORE_LABEL, PADDING_TOKEN, HRMConfig
from schemas import HRMExample, SQEHRMError


class ExampleError(SQEHRMError):
    """An example that the network cannot take."""


@dataclass(frozen=True)
class Batch:
    """B examples, padded to sequence length S."""

    inputs: Tensor
    """int64 (B, S), padded with `PADDING_TOKEN`."""
    labels: Tensor
    """int64 (B, S), padded with `IGNORE_LABEL`."""
    puzzle_ids: Tensor
    """int64 (B,)."""

    def __len__(self) -> int:
        return len(self.puzzle_ids)

    def __getitem__(self, rows: Tensor | slice) -> "Batch":
        return Batch(self.inputs[rows], self.labels[rows], self.puzzle_ids[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.inputs.to(device), self.labels.to(device), self.puzzle_ids.to(device))

    def replace(self, rows: Tensor, other: "Batch") -> "Batch":
        """A copy with `other` at the positions where the bool tensor `rows` (B,) is true."""
        replaced = Batch(self.inputs.clone(), self.labels.clone(), self.puzzle_ids.clone())
        replaced.inputs[rows] = other.inputs
        replaced.labels[rows] = other.labels
        replaced.puzzle_ids[rows] = other.puzzle_ids
        return replaced


def encode(examples: Sequence[HRMExample], config: HRMConfig) -> Batch:
    """Pad `examples` for a network of `config`. Raises `ExampleError` for what does not fit it."""
    for example in examples:
        check_fits(example, config)
    return Batch(
        inputs=_pad([example.input_sequence for example in examples], PADDING_TOKEN, config),
        labels=_pad([example.target_sequence for example in examples], IGNORE_LABEL, config),
        puzzle_ids=torch.tensor([example.puzzle_id for example in examples], dtype=torch.int64),
    )


def check_fits(example: HRMExample, config: HRMConfig) -> None:
    """Raise `ExampleError` where `example` is beyond the network's length or puzzle table."""
    longest = max(len(example.input_sequence), len(example.target_sequence))
    if longest > config.seq_len:
        raise ExampleError(
            f"a sequence of {longest} tokens, but the checkpoint takes {config.seq_len}: "
            "use a checkpoint trained for longer sequences"
        )
    if config.puzzle_emb_ndim and example.puzzle_id >= config.num_puzzle_identifiers:
        raise ExampleError(
            f"puzzle_id {example.puzzle_id}, but the checkpoint's table has rows 0 to "
            f"{config.num_puzzle_identifiers - 1}: send an id in that range or none"
        )


def _pad(sequences: list[tuple[int, ...]], padding: int, config: HRMConfig) -> Tensor:
    rows = [sequence + (padding,) * (config.seq_len - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), config.seq_len)
