"""How a run converts its messages: the conversion of its options, with rows for its tasks.

Knows conversions, tasks and puzzle rows; nothing of networks.
"""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from pydantic import ValidationError

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.pairs import AcceptedExample
from hrm.data.config import ENOUGH_PROMPTS, ConversionConfig, PuzzlePolicy, Task
from hrm.data.conversion import Converter
from hrm.data.templates import find_templates, fits
from hrm.data.variations import Words
from hrm.training.examples import MAX_PUZZLES, TrainingDataError, named_tasks
from hrm.training.options import OptionsError, TrainingOptions
from hrm.training.plan import LEAST_ROWS, default_rows


def new_conversion(options: TrainingOptions) -> ConversionConfig:
    """How a run without a base checkpoint converts messages. Raises `OptionsError`.

    Without a given puzzle space it has the smallest one until the messages are counted.
    """
    fields = ("hashed_tokens", "case_sensitive")
    given = {name: getattr(options, name) for name in fields if name in options.model_fields_set}
    rows = options.puzzle_space or LEAST_ROWS
    try:
        return ConversionConfig(version=options.conversion, puzzle_space=rows, **given)
    except ValidationError:
        raise OptionsError(list(given), ": conversion 1 has no such choice") from None


def with_tasks(
    conversion: ConversionConfig,
    data_path: Path,
    options: TrainingOptions,
    source: Checkpoint | None,
    replayed: Sequence[AcceptedExample],
) -> ConversionConfig:
    """`conversion` with a row for each task of the data that has none, behind all other rows.

    These are as many as the messages without a task need, if nobody said how many. A template that
    a replayed prompt fits is no new task: the prompt's puzzle would change.

    Raises `OptionsError` and `TrainingDataError`.
    """
    if options.find_tasks and conversion.version == 1:
        raise OptionsError(["find_tasks"], ": 12 tokens tell too few words apart: use conversion 2")
    named = named_tasks(data_path, Converter(conversion) if options.find_tasks else None)
    if source is None and options.puzzle_space is None:
        rows = default_rows(named.unnamed)
        conversion = conversion.model_copy(update={"puzzle_space": rows})
    known = {task.name for task in conversion.tasks}
    new = {name: Words() for name in named.tasks if name not in known}
    templates = [
        each
        for each in find_templates(named.others, ENOUGH_PROMPTS)
        if not any(
            held.hashed and fits(each.words, held.example.input_sequence[1:-1]) for held in replayed
        )
    ]
    free = (name for number in count(1) if (name := f"found-{number}") not in known | new.keys())
    new.update(zip(free, (each.words for each in templates), strict=False))
    if not new:
        return conversion
    if source is not None and conversion.puzzle_policy is PuzzlePolicy.LINE_INDEX:
        raise TrainingDataError(
            f"{data_path}: has tasks, but {source.name} chooses puzzles by line_index: leave "
            "task and --find-tasks out, or start without --init-from"
        )
    table = 0 if source is None else source.config.num_puzzle_identifiers
    first_free = max(conversion.puzzle_space, table, named.puzzles)
    if first_free + len(new) > MAX_PUZZLES:
        raise TrainingDataError(
            f"{data_path}: {len(new):,} tasks need puzzle rows up to {first_free + len(new) - 1}, "
            f"but the largest puzzle table has {MAX_PUZZLES}: use smaller puzzle ids"
        )
    tasks = [
        Task(name=name, row=row, template=template)
        for row, (name, template) in enumerate(new.items(), first_free)
    ]
    return ConversionConfig.model_validate(
        {
            **dict(conversion),
            "puzzle_policy": PuzzlePolicy.TASK,
            "tasks": (*conversion.tasks, *tasks),
        }
    )
