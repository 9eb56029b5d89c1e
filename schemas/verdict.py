"""The verdict: what the evaluation of one message found."""

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.categories import Category, Difficulty
from schemas.example import Token


class HaltedBy(StrEnum):
    """Which rule ended the computation."""

    Q = "q"
    """The Q head preferred halting (`q_halt > q_continue`)."""
    MAX_STEPS = "max_steps"
    """The step limit."""


class FailurePattern(StrEnum):
    """How an unsolved message failed: the first that applies, in this order."""

    NEAR_MISS = "near_miss"
    """Wrong tokens at most max(1, 5 %)."""
    SHIFTED = "shifted"
    """Edit similarity at least 0.8 where position accuracy is below it."""
    WRONG_LENGTH = "wrong_length"
    """The first predicted `end` is not where the target's is."""
    NO_SIGNAL = "no_signal"
    """No better than always guessing the commonest target token."""
    DIVERGED_EARLY = "diverged_early"
    """The first wrong token lies in the first half."""
    DIVERGED_LATE = "diverged_late"
    """The first wrong token lies in the second half."""


class Timings(BaseModel):
    """Seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: float | None = Field(ge=0, description="Enqueued until taken; null where unknown.")
    convert: float = Field(ge=0, description="Validation and conversion.")
    inference: float = Field(ge=0, description="Handed to the engine until answered.")
    total: float = Field(ge=0, description="Enqueued (or taken) until the verdict.")


class Verdict(BaseModel):
    """Every figure comes from inference with the named checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: str
    agent_id: str
    checkpoint: str
    checkpoint_digest: str
    puzzle_id: int
    solved: bool = Field(description="Every target token right.")
    token_accuracy: float = Field(ge=0, le=1, description="By position.")
    edit_similarity: float = Field(
        ge=0, le=1, description="1 - Levenshtein distance / target length, at least 0."
    )
    correct_tokens: int = Field(ge=0)
    target_tokens: int = Field(ge=1)
    predicted_sequence: tuple[Token, ...] = Field(description="At the target's positions.")
    known: bool = Field(description="This puzzle and input were in the checkpoint's training set.")
    act_steps: int = Field(ge=1)
    halted_by: HaltedBy
    q_halt: float = Field(description="Logit at the last step.")
    q_continue: float = Field(description="Logit at the last step.")
    q_flips: int = Field(ge=0, description="How often the sign of q_halt - q_continue changed.")
    difficulty: Difficulty
    category: Category
    failure_pattern: FailurePattern | None = Field(description="Null when solved.")
    timings: Timings
    device: str
    worker: str
    evaluated_at: AwareDatetime

    @property
    def q_right(self) -> bool:
        """Whether the Q head says rightly that the example is solved: `q_halt >= 0` says so."""
        return (self.q_halt >= 0) == self.solved
