"""Examples of chosen tokens."""

from schemas import Difficulty, ExampleMetadata, HRMExample


def example(
    puzzle_id: int = 0, inputs: tuple[int, ...] = (0, 11), target: tuple[int, ...] = (0, 11)
) -> HRMExample:
    return HRMExample(
        puzzle_id=puzzle_id,
        input_sequence=inputs,
        target_sequence=target,
        solution_steps=(),
        metadata=ExampleMetadata(prompt_length=1, completion_length=1, difficulty=Difficulty.EASY),
    )
