"""The wire contract: frozen models, and the JSON Schemas published from them in `schemas/v1`.

Imports pydantic and no other package of this project.
"""

from schemas.categories import Category, Difficulty
from schemas.errors import SQEHRMError, first_problem
from schemas.example import (
    MAX_SEQUENCE_LENGTH,
    MAX_TARGET_LENGTH,
    VOCABULARY_SIZE,
    ExampleMetadata,
    HRMExample,
    SolutionStep,
)
from schemas.message import DEFAULT_MAX_MESSAGE_BYTES, SQEMessage, parse_message
from schemas.rejection import DeadLetter, MessageRejected, Rejection, RejectionReason
from schemas.verdict import (
    FailurePattern,
    HaltedBy,
    PromptMatch,
    TextCheck,
    Timings,
    Verdict,
    VerdictText,
)

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "MAX_SEQUENCE_LENGTH",
    "MAX_TARGET_LENGTH",
    "VOCABULARY_SIZE",
    "Category",
    "DeadLetter",
    "Difficulty",
    "ExampleMetadata",
    "FailurePattern",
    "HRMExample",
    "HaltedBy",
    "MessageRejected",
    "PromptMatch",
    "Rejection",
    "RejectionReason",
    "SQEHRMError",
    "SQEMessage",
    "SolutionStep",
    "TextCheck",
    "Timings",
    "Verdict",
    "VerdictText",
    "first_problem",
    "parse_message",
]
