"""Examples as tensors, padded to the network's length. Knows no model and no files."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hrm.model.config import IGNORE_LABEL, PADDING_TOKEN, HRMConfig
from schemas import HRMExample, SQEHRMError


class ExampleError(SQEHRMError):
    """An example does not fit the network."""


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
        """Copy the batch to `device`."""
        return Batch(self.inputs.to(device), self.labels.to(device), self.puzzle_ids.to(device))

    def replace(self, rows: Tensor, other: "Batch") -> "Batch":
        """Copy the batch, with `other` in the rows for which `rows`, bool (B,), is true."""
        replaced = Batch(self.inputs.clone(), self.labels.clone(), self.puzzle_ids.clone())
        replaced.inputs[rows] = other.inputs
        replaced.labels[rows] = other.labels
        replaced.puzzle_ids[rows] = other.puzzle_ids
        return replaced


@dataclass(frozen=True)
class Messages:
    """N messages as a batch with a row for each part of each message."""

    parts: Batch
    message: Tensor
    """int64 (B,): the number, from 0 to N - 1, of the message that each row is a part of."""

    @classmethod
    def whole(cls, batch: Batch) -> Self:
        """Messages of one part each."""
        return cls(batch, torch.arange(len(batch), device=batch.inputs.device))

    def __len__(self) -> int:
        return int(self.message[-1]) + 1 if len(self.message) else 0

    def select(self, numbers: Tensor) -> "Messages":
        """The messages of `numbers`, int64 (M,), in the order that they have here."""
        rows = torch.isin(self.message, numbers)
        _, renumbered = torch.unique(self.message[rows], return_inverse=True)
        return Messages(self.parts[rows], renumbered)

    def to(self, device: torch.device | str) -> "Messages":
        """Copy the messages to `device`."""
        return Messages(self.parts.to(device), self.message.to(device))


def encode_messages(messages: Sequence[Sequence[HRMExample]], config: HRMConfig) -> Messages:
    """Pad messages, each given as its parts, for a network of `config`.

    Raises `ExampleError` if one does not fit.
    """
    numbers = [number for number, parts in enumerate(messages) for _ in parts]
    parts = encode([part for parts in messages for part in parts], config)
    return Messages(parts, torch.tensor(numbers, dtype=torch.int64))


def encode(examples: Sequence[HRMExample], config: HRMConfig) -> Batch:
    """Pad `examples` for a network of `config`. Raises `ExampleError` if one does not fit."""
    for example in examples:
        check_fits(example, config)
    inputs, puzzle_ids = encode_inputs(examples, config)
    labels = _pad([example.target_sequence for example in examples], IGNORE_LABEL, config)
    return Batch(inputs, labels, puzzle_ids)


def encode_inputs(examples: Sequence[HRMExample], config: HRMConfig) -> tuple[Tensor, Tensor]:
    """Pad the inputs alone: `inputs` and `puzzle_ids` as in `encode`.

    `check_fits` must have passed for all `examples`.
    """
    inputs = _pad([example.input_sequence for example in examples], PADDING_TOKEN, config)
    # Without a puzzle table every id fits, even one that is too large for int64.
    puzzle_ids = [example.puzzle_id if config.puzzle_emb_ndim else 0 for example in examples]
    return inputs, torch.tensor(puzzle_ids, dtype=torch.int64)


def check_fits(example: HRMExample, config: HRMConfig) -> None:
    """Raise `ExampleError` if `example` exceeds the network's length or puzzle table."""
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
    # Building the tensor from bytes takes a fifth of the time that a list of numbers takes. int32
    # holds every token and `IGNORE_LABEL`.
    filler = array("i", [padding]) * config.seq_len
    rows = bytearray().join(
        (array("i", each) + filler[len(each) :]).tobytes() for each in sequences
    )
    flat = torch.frombuffer(rows, dtype=torch.int32) if rows else torch.empty(0)
    return flat.view(len(sequences), config.seq_len).long()
