"""Notes on a run, before it starts: what it will not do with its data, in a line each.

Knows training examples, tasks and the noise that is asked for; nothing of networks or files. None
of it is wrong: the data is trained as it is.
"""

from collections.abc import Iterator, Sequence

from hrm.checkpoint.pairs import AcceptedExample
from hrm.checkpoint.record import TrainingRecord
from hrm.data.config import ENOUGH_PROMPTS, ConversionConfig
from hrm.data.variations import allowed, are_apart

MAX_NAMED = 5
"""Tasks that are named one by one."""


def notes_on(
    examples: Sequence[AcceptedExample],
    record: TrainingRecord,
    conversion: ConversionConfig,
    prompt_noise: int,
) -> tuple[str, ...]:
    """The notes on a run.

    Args:
        examples: The training examples.
        record: Their record.
        conversion: How they were converted; it has the tasks.
        prompt_noise: Most words of a prompt that training changes; 0 for none.
    """
    noise = _on_noise(examples, record, prompt_noise) if prompt_noise else ()
    return (*_on_tasks(record, conversion), *noise)


def _on_tasks(record: TrainingRecord, conversion: ConversionConfig) -> Iterator[str]:
    puzzles = frozenset() if record.accepted is None else record.accepted.puzzles
    counts = {
        task.name: record.prompts_of(task.row) for task in conversion.tasks if task.row in puzzles
    }
    few = {name: count for name, count in counts.items() if count < ENOUGH_PROMPTS}
    if few:
        named = ", ".join(f"{name} has {count:,}" for name, count in list(few.items())[:MAX_NAMED])
        more = f" and {len(few) - MAX_NAMED:,} more" if len(few) > MAX_NAMED else ""
        yield (
            f"new prompts of a task are not judged before {ENOUGH_PROMPTS} prompts of it are "
            f"trained: {named}{more}"
        )


def _on_noise(
    examples: Sequence[AcceptedExample], record: TrainingRecord, changes: int
) -> Iterator[str]:
    firsts: dict[str, AcceptedExample] = {}
    for each in examples:
        firsts.setdefault(each.pair, each)
    prompts = list(firsts.values())
    exact = [each for each in prompts if not _is_varied(each, record)]
    short = [each for each in exact if not allowed(_words(each), changes)]
    if short:
        yield (
            f"too short to be varied: {_prompts(short)} of at most two words, the first is "
            f"{_place(short[0])}"
        )
    alike = [each for each in exact if allowed(_words(each), changes)]
    if alike:
        first = alike[0]
        other = next(
            each for each in prompts if each is not first and _are_alike(first, each, changes)
        )
        yield (
            f"too much alike to be varied: {_prompts(alike)}, of which a variation could be "
            f"that of another prompt of the puzzle, the first are {_place(first)} and "
            f"{_place(other)}"
        )
    nameless = [each for each in prompts if each.hashed]
    if nameless:
        yield (
            f"not recognised in other words: {_prompts(nameless)} without puzzle_id or task, "
            f"since other words have another puzzle, the first is {_place(nameless[0])}"
        )


def _prompts(examples: Sequence[AcceptedExample]) -> str:
    return f"{len(examples):,} prompt{'s' if len(examples) > 1 else ''}"


def _place(each: AcceptedExample) -> str:
    return f"line {each.line}" if each.line else "a replayed pair"


def _words(each: AcceptedExample) -> tuple[int, ...]:
    return each.example.input_sequence[1:-1]


def _is_varied(each: AcceptedExample, record: TrainingRecord) -> bool:
    variations = None if record.accepted is None else record.accepted.variations
    inputs = () if variations is None else variations.prompts.get(each.example.puzzle_id, ())
    return each.example.input_sequence in inputs


def _are_alike(one: AcceptedExample, other: AcceptedExample, changes: int) -> bool:
    same_puzzle = one.example.puzzle_id == other.example.puzzle_id
    return same_puzzle and not are_apart(_words(one), _words(other), changes)
