"""Everything a verdict says of a message without the model.

Knows the training record and a message's texts; nothing of predictions. The check says that an
answer is another one than those accepted, whatever words the model does not read; the model says
how far it is from them.
"""

from collections.abc import Collection
from dataclasses import dataclass

from hrm.checkpoint.record import TrainingRecord, pair_hash
from hrm.data.config import ENOUGH_PROMPTS
from hrm.data.conversion import Content
from hrm.data.vocabulary import unread_words
from schemas import HRMExample, PromptMatch, TextCheck


@dataclass(frozen=True)
class MessageCheck:
    """The check of one message."""

    text: TextCheck
    match: PromptMatch
    unread_words: int | None
    """Words of prompt and completion beyond those that their sequences hold; None for an example
    that was converted before, whose words nobody knows."""
    target_accepted: bool
    """Whether the target can be an accepted one if all its tokens are predicted. Not if the prompt
    is known, or a variation of a known one, and none of its accepted targets is as long, or has
    these tokens."""
    rows: Collection[int]
    """Puzzle rows that hold the accepted answers of such a prompt; none if it has one."""

    @property
    def truncated(self) -> bool | None:
        """Whether there are such words; None if nobody knows."""
        return None if self.unread_words is None else self.unread_words > 0


def check_message(
    content: Content, example: HRMExample, record: TrainingRecord | None, named: int | None
) -> MessageCheck:
    """Check a message.

    Args:
        content: The message or pair; or the example itself, if it was converted before.
        example: Its example.
        record: The training record of the checkpoint; None if it has none.
        named: The puzzle that the message itself names (`Converter.named_puzzle`).
    """
    accepted = None if record is None else record.accepted
    text, unread = TextCheck.UNKNOWN, None
    if not isinstance(content, HRMExample):
        if accepted is not None:
            text = accepted.texts.check_texts(content.prompt, content.completion)
        unread = unread_words(content.prompt, example.input_sequence)
        unread += unread_words(content.completion, example.target_sequence)
    pair = pair_hash(example.puzzle_id, example.input_sequence)
    varied = None
    if record is not None and named is not None:
        varied = record.varied_pair(named, example.input_sequence)
    match = _match(content, pair, varied, named, record)
    pair = varied or pair
    return MessageCheck(
        text=text,
        match=match,
        unread_words=unread,
        target_accepted=record is None or record.accepts_target(pair, example.target_sequence),
        rows=() if record is None else record.rows(pair),
    )


def _match(
    content: Content,
    pair: str,
    varied: str | None,
    named: int | None,
    record: TrainingRecord | None,
) -> PromptMatch:
    if record is None:
        return PromptMatch.NONE
    if pair in record.pair_hashes:
        return PromptMatch.PAIR
    # The puzzle of an example may be one that a policy drew, which says nothing.
    if isinstance(content, HRMExample) or record.accepted is None:
        return PromptMatch.NONE
    if varied is not None or record.accepted.texts.has_prompt(content.prompt):
        return PromptMatch.NEAR
    if named not in record.accepted.puzzles:
        return PromptMatch.NONE
    return PromptMatch.PUZZLE if record.prompts_of(named) >= ENOUGH_PROMPTS else PromptMatch.NEW
