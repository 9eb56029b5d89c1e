"""Small networks with random weights, and the result of one of their steps."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.config import HRMConfig
from hrm.model.network import HRM


def tiny(**fields: Any) -> HRMConfig:  # noqa: ANN401
    """The sizes of a network that computes a step in a millisecond, with `fields` of its own."""
    sizes = {
        "num_puzzle_identifiers": 5,
        "puzzle_emb_ndim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "H_layers": 1,
        "L_layers": 1,
        "seq_len": 8,
    }
    return HRMConfig(**{**sizes, **fields})


FOR_MESSAGES = tiny(num_puzzle_identifiers=1000, seq_len=100, halt_max_steps=2)
"""A network that evaluates messages of any length in a millisecond, and knows none of them."""


def saved_for_messages(folder: Path) -> Path:
    """A checkpoint of `FOR_MESSAGES` in `folder`."""
    save_checkpoint(folder, HRM(FOR_MESSAGES).state_dict(), FOR_MESSAGES, ConversionConfig(), None)
    return folder


def tiny_network(**fields: Any) -> HRM:  # noqa: ANN401
    """A new network of the sizes of `tiny`, with the same weights at every call."""
    torch.manual_seed(0)
    return HRM(tiny(**fields))


def config(heads: int = 2, head_dim: int = 32, **fields: Any) -> HRMConfig:  # noqa: ANN401
    sizes = {"hidden_size": heads * head_dim, "num_heads": heads, "expansion": 2.0, "seq_len": 6}
    return tiny(**{**sizes, **fields})


def network(dtype: torch.dtype = torch.float32, **fields: Any) -> HRM:  # noqa: ANN401
    torch.manual_seed(1)
    return HRM(config(**fields), dtype).eval()


def step_from(network: HRM, state_seed: int = 0, batch: int = 3) -> tuple[Tensor, Tensor]:
    """One ACT step of random inputs."""
    torch.manual_seed(state_seed)
    inputs = torch.randint(0, 12, (batch, network.config.seq_len))
    with torch.inference_mode():
        x = network.embed(inputs, network.puzzle_embedding(torch.arange(batch)))
        state = network.step(network.initial_state(batch), x)
        return network.token_logits(state.z_H), network.q_logits(state.z_H)


def assert_same_step(plain: HRM, fast: HRM, tolerance: float = 1e-4) -> None:
    for ours, theirs in zip(step_from(fast), step_from(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
