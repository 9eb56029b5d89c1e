"""The size of a scenario."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    repetitions: int
    messages: int
    """Messages of each repetition, beside those that an agent keeps sending."""
    seconds: float = 0.0
    """Duration of each fault."""
