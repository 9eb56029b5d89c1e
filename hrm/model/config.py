"""The sizes of a network, and the padding of its inputs and labels.

Fields are named as in the reference's configuration files, so that a reader of one knows the other.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from schemas import MAX_SEQUENCE_LENGTH, VOCABULARY_SIZE

PADDING_TOKEN = 0
"""Token that inputs are padded with; padding takes part in attention."""

IGNORE_LABEL = -100
"""Value that labels are padded with; padded positions count neither in losses nor in figures."""


class TokenHead(StrEnum):
    """How the logits of a position become probabilities of its tokens.

    The largest logit is the prediction under both. They differ in what training costs and in what
    an ensemble's average means.
    """

    STABLEMAX = "stablemax"
    """The reference's (`hrm.model.outputs`). Its gradients never vanish, but each wrong token keeps
    a part of the probability that falls only as 1 / -logit, which many tokens add up."""
    SOFTMAX = "softmax"


class HRMConfig(BaseModel):
    """Sizes of the network. The defaults are those of the v9 checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(default=VOCABULARY_SIZE, ge=2)
    seq_len: int = Field(default=MAX_SEQUENCE_LENGTH, ge=2)
    num_puzzle_identifiers: int = Field(default=95_996, ge=1)
    puzzle_emb_ndim: int = Field(default=256, ge=0, description="0: no puzzle embedding.")
    hidden_size: int = Field(default=256, ge=2)
    num_heads: int = Field(default=8, ge=1)
    expansion: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    H_layers: int = Field(default=2, ge=1)
    L_layers: int = Field(default=2, ge=1)
    H_cycles: int = Field(default=2, ge=1)
    L_cycles: int = Field(default=2, ge=1)
    pos_encodings: Literal["rope", "learned"] = "rope"
    rope_theta: float = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    rms_norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    halt_max_steps: int = Field(default=16, ge=1)
    halt_exploration_prob: float = Field(default=0.1, ge=0, le=1)
    token_head: TokenHead = Field(
        default=TokenHead.STABLEMAX,
        description="How logits of tokens become probabilities, which the head was trained for.",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the head that all networks had before there was another: digests stay."""
        fields: dict[str, Any] = write(self)
        if self.token_head is TokenHead.STABLEMAX:
            fields.pop("token_head", None)
        return fields

    @model_validator(mode="after")
    def _heads_divide_hidden_size(self) -> "HRMConfig":
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not give {self.num_heads} even-sized heads"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def puzzle_emb_len(self) -> int:
        """Number of leading positions for the puzzle embedding: ceil(puzzle_emb_ndim / D)."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def intermediate_size(self) -> int:
        """Inner size of SwiGLU: round(expansion x D x 2/3), raised to a multiple of 256."""
        return -(-round(self.expansion * self.hidden_size * 2 / 3) // 256) * 256
