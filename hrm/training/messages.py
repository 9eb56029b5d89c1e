"""The messages of a run: read, divided, with rows for their answers, and as tensors.

Knows examples and their puzzle rows; nothing of options beside those that choose messages, or of
steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.pairs import AcceptedExample, with_answer_rows
from hrm.checkpoint.record import Answers
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.model.batch import Messages, encode_messages
from hrm.model.network import HRM
from hrm.training.answers import Contradictions, answer_rows, check_contradictions, resolve
from hrm.training.examples import MAX_PUZZLES, TrainingDataError, read_examples, split
from hrm.training.options import TrainingOptions
from hrm.training.replay import without_held
from schemas import HRMExample


@dataclass(frozen=True)
class RunMessages:
    """The messages to train on, and those held out."""

    training: list[AcceptedExample]
    """The replayed messages, and then the new ones."""
    held_out: list[AcceptedExample]
    left_out: int = 0
    """Lines that contradict others and are not trained on."""
    answers: Answers = field(default_factory=dict)
    """Puzzle rows of the training pairs with several accepted targets."""

    @property
    def replayed(self) -> int:
        """The number of training examples that the base held."""
        return sum(each.held for each in self.training)

    @property
    def puzzles(self) -> int:
        """Rows of a puzzle table that has room for all examples and answers."""
        ids = [each.example.puzzle_id for each in self.training + self.held_out]
        return max(*ids, *(row for rows in self.answers.values() for row in rows.values()), 0) + 1

    @property
    def further_answers(self) -> int:
        """Accepted targets in puzzle rows of their own."""
        return sum(len(rows) - 1 for rows in self.answers.values())

    def on(self, network: HRM, converter: Converter) -> tuple[Messages, Messages | None]:
        """Both sets as tensors for `network`, on its device.

        Held-out prompts have the rows of their puzzles, since nothing else was trained for them.
        """

        def encoded(examples: Sequence[HRMExample]) -> Messages:
            messages = [converter.parts(example) for example in examples]
            return encode_messages(messages, network.config).to(network.H_init.device)

        held_out = [each.example for each in self.held_out]
        return (
            encoded(with_answer_rows(self.training, self.answers)),
            encoded(held_out) if held_out else None,
        )


def read_messages(
    data_path: Path,
    options: TrainingOptions,
    converter: Converter,
    replayed: Sequence[AcceptedExample],
    *,
    resumed: bool,
) -> RunMessages:
    """Read the messages of a run, and choose those that are held out.

    Args:
        data_path: JSONL file of accepted messages.
        options: The run's options.
        converter: Turns messages into examples.
        replayed: Accepted pairs to train on beside those of the file.
        resumed: Whether the run goes on.

    Raises `TrainingDataError`; if lines contradict each other, it is a `ContradictionError`.
    """
    lines = read_examples(data_path, converter)
    everything = [*replayed, *lines]
    # A resumed run goes on as it was started, also if nobody looked for contradictions then.
    if options.contradictions is Contradictions.REFUSE and not resumed:
        check_contradictions(everything, data_path)
    examples = resolve(everything, options.contradictions)
    left_out = len(everything) - len(examples)
    examples = without_held(examples)
    if options.held_out is not None:
        pairs = {example.pair for example in examples}
        held_out = read_examples(options.held_out, converter, excluded=pairs)
        return RunMessages(examples, held_out, left_out)
    if options.held_out_share is not None:
        return RunMessages(*split(examples, options.held_out_share, options.seed), left_out)
    return RunMessages(examples, [], left_out)


def with_answers(
    data: RunMessages,
    data_path: Path,
    conversion: ConversionConfig,
    source: Checkpoint | None,
    *,
    resumed: bool,
) -> RunMessages:
    """`data` with the puzzle rows of its answers; a resumed run has them in its record.

    Raises `TrainingDataError`.
    """
    earlier = {} if source is None or source.training is None else source.training.answers
    if resumed:
        return replace(data, answers=earlier)
    table = 0 if source is None else source.config.num_puzzle_identifiers
    first_free = max(conversion.puzzle_space, table, data.puzzles)
    data = replace(data, answers=answer_rows(data.training, first_free, earlier))
    if data.answers and source is not None and not source.config.puzzle_emb_ndim:
        raise TrainingDataError(
            f"{data_path}: {len(data.answers):,} prompts have several accepted answers, but "
            f"{source.name} has no puzzle table to hold them: give one to each, or start without "
            "--init-from"
        )
    if data.puzzles > MAX_PUZZLES:
        raise TrainingDataError(
            f"{data_path}: {data.further_answers:,} further answers need puzzle rows up to "
            f"{data.puzzles - 1}, but the largest puzzle table has {MAX_PUZZLES}: use smaller "
            "puzzle ids, or give one answer to each prompt"
        )
    return data
