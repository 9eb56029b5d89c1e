"""The verdict: the result of evaluating one message."""

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json

from schemas.categories import Category, Difficulty
from schemas.example import Token


class HaltedBy(StrEnum):
    """The rule that ended the computation."""

    Q = "q"
    """The Q head preferred halting (`q_halt > q_continue`)."""
    MAX_STEPS = "max_steps"
    """The step limit was reached."""


class FailurePattern(StrEnum):
    """Failure pattern of an unsolved message: the first that applies, in this order."""

    NEAR_MISS = "near_miss"
    """One target token is wrong, or more but at most 5 % of them."""
    SHIFTED = "shifted"
    """Edit similarity is at least 0.8, and higher than token accuracy."""
    WRONG_LENGTH = "wrong_length"
    """The first `end` is at another position than in the target, or in only one of the two. Or all
    tokens are right, but the prompt is known and no accepted completion of it ends there: this one
    was cut before a word that has the token of the end."""
    NO_SIGNAL = "no_signal"
    """The prediction is no better than always guessing the commonest target token."""
    DIVERGED_EARLY = "diverged_early"
    """The first wrong token lies in the first half."""
    DIVERGED_LATE = "diverged_late"
    """The first wrong token lies in the second half."""


class TextCheck(StrEnum):
    """Whether a completion is one that was accepted for its prompt, by hashes of the texts alone.

    The model has no part in it. A prompt is recognised whatever its white space, letter case and
    Unicode form.
    """

    SAME = "same"
    """The completion equals an accepted one, character by character."""
    NORMALISED = "normalised"
    """The completion differs from an accepted one only in white space, case or Unicode form."""
    DIFFERENT = "different"
    """Completions were accepted for this prompt, and this is none of them."""
    UNKNOWN = "unknown"
    """No completion was accepted for this prompt, or no hashes of accepted texts are at hand."""


class PromptMatch(StrEnum):
    """How the checkpoint's training set knows a prompt: the first that applies, in this order."""

    PAIR = "pair"
    """This puzzle and these input tokens were trained; the verdict is `known`."""
    NEAR = "near"
    """The prompt is an accepted one, whatever its white space, case and Unicode form, but puzzle or
    tokens differ from those that were trained. Or the message names a puzzle of which an accepted
    prompt differs in no more words than training changed (`train --prompt-noise`)."""
    PUZZLE = "puzzle"
    """The message itself names a puzzle or a task that was trained with enough other prompts for
    this one to be judged."""
    NEW = "new"
    """The message itself names a puzzle or a task that was trained with other prompts, but with too
    few for this one to be judged."""
    NONE = "none"
    """Nothing of it was trained, or there is no record of what was."""


class Timings(BaseModel):
    """Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: float | None = Field(
        ge=0, description="From enqueued until taken by a worker; null if unknown."
    )
    convert: float = Field(ge=0, description="Validation and conversion of the message.")
    inference: float = Field(ge=0, description="From submission to the engine until its answer.")
    total: float = Field(
        ge=0,
        description="From enqueued until the verdict; from taken if the time of enqueuing is "
        "unknown.",
    )


class Verdict(BaseModel):
    """The result for one message. Every figure comes from inference with the named checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: str
    agent_id: str
    checkpoint: str
    checkpoint_digest: str
    puzzle_id: int
    solved: bool = Field(
        description="Whether every target token is predicted correctly and, if the prompt is "
        "known, an accepted target ends there. If the prompt has several accepted answers, the "
        "prediction that is nearest to the target counts. It says nothing of words beyond those "
        "that the model reads, nor of words with equal tokens: see `text`."
    )
    token_accuracy: float = Field(
        ge=0, le=1, description="Share of target tokens predicted correctly, by position."
    )
    edit_similarity: float = Field(
        ge=0, le=1, description="1 - Levenshtein distance / target length, at least 0."
    )
    correct_tokens: int = Field(ge=0)
    target_tokens: int = Field(ge=1)
    predicted_sequence: tuple[Token, ...] = Field(
        description="Predicted tokens at the target's positions."
    )
    known: bool = Field(
        description="Whether this puzzle and input were in the checkpoint's training set: the "
        "match is `pair`."
    )
    match: PromptMatch = Field(description="How the checkpoint's training set knows the prompt.")
    text: TextCheck = Field(
        description="Whether the completion is an accepted one for this prompt, by hashes of the "
        "texts; the model has no part in it."
    )
    truncated: bool | None = Field(
        description="Whether prompt or completion have words that the model does not read; null "
        "for an example that was converted before."
    )
    unread_words: int | None = Field(
        ge=0,
        description="Words of prompt and completion that the model does not read; null for an "
        "example that was converted before.",
    )
    act_steps: int = Field(ge=1)
    halted_by: HaltedBy
    q_halt: float = Field(description="Logit for halting, at the last step.")
    q_continue: float = Field(description="Logit for continuing, at the last step.")
    q_flips: int = Field(ge=0, description="Sign changes of q_halt - q_continue between steps.")
    difficulty: Difficulty
    category: Category
    failure_pattern: FailurePattern | None = Field(
        description="Failure pattern of the message; null if it is solved."
    )
    timings: Timings
    device: str
    dtype: str | None = Field(
        default=None,
        description="Dtype of the model's matrix products, as torch calls it: `float32`, "
        "`bfloat16` or `int8`. Null in verdicts from before they had it.",
    )
    worker: str
    evaluated_at: AwareDatetime

    @property
    def q_right(self) -> bool:
        """Whether the Q head is right about `solved`: `q_halt >= 0` predicts a solved example."""
        return (self.q_halt >= 0) == self.solved


class VerdictText:
    """Writes verdicts that are equal but for ids and times as JSON.

    The text is that of `Verdict.model_dump_json`, in half of the time.

    Args:
        verdict: One of them.
    """

    def __init__(self, verdict: Verdict) -> None:
        own = {"message_id", "agent_id", "timings", "evaluated_at"}
        text = verdict.model_dump_json(exclude=own).strip("{}").encode()
        # No string has this in it: its quotes would have backslashes.
        results, device, rest = text.partition(b',"device":')
        self._results = b"," + results + b',"timings":'
        self._device = device + rest + b',"evaluated_at":'

    def __call__(self, verdict: Verdict) -> str:
        """Write `verdict` as JSON."""
        parts = (
            *(b'{"message_id":', to_json(verdict.message_id)),
            *(b',"agent_id":', to_json(verdict.agent_id)),
            *(self._results, to_json(verdict.timings)),
            *(self._device, to_json(verdict.evaluated_at), b"}"),
        )
        return b"".join(parts).decode()
