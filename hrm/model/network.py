"""The Hierarchical Reasoning Model (Wang et al., 2025, arXiv:2506.21734), version ACT v1.

Knows sizes and tensors; nothing of text, files, optimisers or scheduling. The state dict has the
keys (below the prefix `model.inner.`) and shapes of the public reference, and the network computes
the same numbers. Symbols: B batch, S sequence length, P leading puzzle positions, T = P + S, D
hidden size, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.model.config import HRMConfig

TRUNCATION = 2.0
"""Standard deviations at which the normal distribution of initial weights is cut off."""

Q_BIAS = -5.0
"""Initial bias of the Q head: it almost never halts at first, so that the token head learns
first."""


class State(NamedTuple):
    """The state carried from one ACT step to the next: both (B, P + S, D), forward dtype."""

    z_H: Tensor
    z_L: Tensor


def truncated_normal(*shape: int, std: float) -> Tensor:
    """Normal float32 numbers, cut off at ± 2 deviations and rescaled to have `std` afterwards."""
    if std == 0:
        return torch.zeros(shape)
    density = math.exp(-(TRUNCATION**2) / 2) / math.sqrt(2 * math.pi)
    mass = math.erf(TRUNCATION / math.sqrt(2))
    scale = std / math.sqrt(1 - 2 * TRUNCATION * density / mass)
    uniform = torch.empty(shape).uniform_(-mass, mass)
    return (uniform.erfinv() * math.sqrt(2)).clamp(-TRUNCATION, TRUNCATION) * scale


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Compute `x / rms(x)` over the last dimension, without weights, in float32; keep the dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class Linear(nn.Module):
    """A linear map whose weights are cast to the dtype of its input."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        std = in_features**-0.5
        self.weight = nn.Parameter(truncated_normal(out_features, in_features, std=std))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Module):
    """A table of trained vectors."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(truncated_normal(rows, size, std=size**-0.5))


class PuzzleEmbedding(nn.Module):
    """A vector for each puzzle. A buffer, because the rows have an optimiser of their own."""

    weights: Tensor

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(rows, size))


class Attention(nn.Module):
    """Multi-head attention over all positions, neither causal nor masked."""

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Attend. x: (B, T, D); rotary: cosines and sines, float32 (2, T, head_dim), or None."""
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of rotary position embedding, half-split form: float32 (2, T, head_dim)."""
    # The same operations as in the reference: an untrained network amplifies a last-bit difference
    # here a hundredfold with every ACT step.
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Apply the rotary table to x (…, T, head_dim) in float32; keep the dtype."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]).to(x.dtype)


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output


class Block(nn.Module):
    """A post-norm transformer block."""

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = rms_norm(x + self.self_attn(x, rotary), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class Level(nn.Module):
    """One of the two recurrent modules, H or L."""

    def __init__(self, config: HRMConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(layers))

    def forward(
        self,
        z: Tensor,
        injection: Tensor,
        rotary: Tensor | None,
        positions: int | None = None,
    ) -> Tensor:
        """Add the injection to the level's state, then apply its blocks; all (B, T, D).

        Returns only the first `positions` of T, if given.
        """
        z = z + injection
        for layer in self.layers:
            z = layer(z, rotary)
        return z[:, :positions]


class LevelCall(Protocol):
    """`Level.forward`, or another form of it."""

    def __call__(
        self, z: Tensor, injection: Tensor, rotary: Tensor | None, positions: int | None = None, /
    ) -> Tensor:
        """Compute the level."""


class Levels(NamedTuple):
    """The functions that compute the two levels."""

    H: LevelCall
    L: LevelCall


class HRM(nn.Module):
    """The network. Weights keep their own dtype; activations have `forward_dtype`."""

    H_init: Tensor
    L_init: Tensor
    rotary: Tensor | None

    def __init__(self, config: HRMConfig, forward_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.forward_dtype = forward_dtype
        self.fused_step: Callable[[State, Tensor], None] | None = None
        """Another form of `step_in_place`, for inference."""
        size = config.hidden_size
        length = config.puzzle_emb_len + config.seq_len

        self.embed_tokens = Embedding(config.vocab_size, size)
        if config.puzzle_emb_ndim:
            self.puzzle_emb = PuzzleEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        rotary = None
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(length, size)
        else:
            rotary = rotary_table(length, config.head_dim, config.rope_theta)
        self.register_buffer("rotary", rotary, persistent=False)
        self.H_level = Level(config, config.H_layers)
        self.L_level = Level(config, config.L_layers)
        self.lm_head = Linear(size, config.vocab_size)
        self.q_head = Linear(size, 2, bias=True)
        self.register_buffer("H_init", truncated_normal(size, std=1.0))
        self.register_buffer("L_init", truncated_normal(size, std=1.0))
        with torch.no_grad():
            self.q_head.weight.zero_()
            if self.q_head.bias is not None:
                self.q_head.bias.fill_(Q_BIAS)

    def puzzle_embedding(self, puzzle_ids: Tensor) -> Tensor | None:
        """Look up int (B,) in the puzzle table: (B, puzzle_emb_ndim), or None without a table."""
        return self.puzzle_emb.weights[puzzle_ids] if self.config.puzzle_emb_ndim else None

    def embed(self, inputs: Tensor, puzzle_embedding: Tensor | None) -> Tensor:
        """Compute the input x of every ACT step: (B, P + S, D), forward dtype.

        It does not change between steps: compute it once per example. inputs: int tokens (B, S),
        padded with 0; puzzle_embedding: (B, puzzle_emb_ndim).
        """
        config, dtype = self.config, self.forward_dtype
        x = F.embedding(inputs, self.embed_tokens.embedding_weight.to(dtype))
        if puzzle_embedding is not None:
            room = config.puzzle_emb_len * config.hidden_size - config.puzzle_emb_ndim
            leading = F.pad(puzzle_embedding.to(dtype), (0, room))
            x = torch.cat((leading.view(-1, config.puzzle_emb_len, config.hidden_size), x), dim=1)
        if config.pos_encodings == "learned":
            x = (x + self.embed_pos.embedding_weight.to(dtype)) * math.sqrt(0.5)
        return x * math.sqrt(config.hidden_size)

    def initial_state(self, batch_size: int) -> State:
        """`H_init` and `L_init` at every position."""
        shape = (batch_size, self.config.puzzle_emb_len + self.config.seq_len, -1)
        return State(
            self.H_init.to(self.forward_dtype).expand(shape),
            self.L_init.to(self.forward_dtype).expand(shape),
        )

    @property
    def levels(self) -> Levels:
        """The network's own levels."""
        return Levels(self.H_level, self.L_level)

    def step(
        self, state: State, x: Tensor, levels: Levels | None = None, positions: int | None = None
    ) -> State:
        """Run one ACT step. Only the last call of L and the last call of H carry gradients.

        Args:
            state: The state after the step before.
            x: (B, T, D), from `embed`.
            levels: Another form of this network's levels to compute with (default: its own).
            positions: How many leading positions of z_H are wanted (default: all).
        """
        if levels is None and positions is None and self.fused_step is not None:
            new = State(*(each.clone(memory_format=torch.contiguous_format) for each in state))
            self.fused_step(new, x.contiguous())
            return new
        config, rotary = self.config, self.rotary
        H, L = levels or self.levels
        z_H, z_L = state
        with torch.no_grad():
            for _ in range(config.H_cycles - 1):
                for _ in range(config.L_cycles):
                    z_L = L(z_L, z_H + x, rotary)
                z_H = H(z_H, z_L, rotary)
            for _ in range(config.L_cycles - 1):
                z_L = L(z_L, z_H + x, rotary)
        z_L = L(z_L, z_H + x, rotary)
        z_H = H(z_H, z_L, rotary, positions)
        return State(z_H, z_L)

    def step_in_place(self, state: State, x: Tensor) -> None:
        """Run one ACT step, in the fastest form, and overwrite `state` with the result.

        Both states and x, (B, T, D) of the forward dtype, are contiguous.
        """
        if self.fused_step is not None:
            self.fused_step(state, x)
            return
        for own, new in zip(state, self.step(state, x), strict=True):
            own.copy_(new)

    def token_logits(self, z_H: Tensor) -> Tensor:
        """Token logits of z_H (B, P + S, D): (B, S, V), forward dtype."""
        logits: Tensor = self.lm_head(z_H[:, self.config.puzzle_emb_len :])
        return logits

    def q_logits(self, z_H: Tensor) -> Tensor:
        """`q_halt` and `q_continue`, read at the first position: float32 (B, 2)."""
        logits: Tensor = self.q_head(z_H[:, 0])
        return logits.float()
