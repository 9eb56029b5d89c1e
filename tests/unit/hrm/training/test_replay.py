"""A run that starts from a checkpoint trains on what that holds, too, and keeps it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hrm.checkpoint import Checkpoint, CheckpointError, TrainingRecord, load_checkpoint, pair_hash
from hrm.checkpoint.pairs import AcceptedPairs
from hrm.checkpoint.record import TRAINING_PAIRS
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.config import ENOUGH_PROMPTS
from hrm.training.answers import ContradictionError
from hrm.training.examples import TrainingDataError
from hrm.training.options import OptionsError, RunPolicy, TrainingOptions
from hrm.training.run import TrainingRun
from hrm.training.setup import prepare_run
from schemas import HaltedBy
from tests.support.evaluations import write_jsonl

TINY: dict[str, Any] = {
    "steps": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "layers": 1,
    "puzzle_space": 8,
    "measure_every": 1,
    "forward_dtype": "float32",
    "hashed_tokens": 500,
}
FURTHER: dict[str, Any] = {"steps": 2, "measure_every": 1, "init_from": "parent"}


def pair(prompt: str, completion: str = "agreed", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"prompt": f"plan the {prompt} of it", "completion": completion, **fields}


HELD = [
    pair("tests"),
    pair("review"),
    pair("release", "on monday", puzzle_id=9),
    pair("release", "on friday", puzzle_id=9, alternative=True),
]
NEW = [pair("rollback", "at once"), pair("audit", "in spring")]


def train(folder: Path, name: str, *lines: dict[str, Any], **options: Any) -> TrainingRun:  # noqa: ANN401
    run = prepare_run(
        write_jsonl(folder / f"{name}.jsonl", *lines),
        folder / name,
        TrainingOptions(**options),
        RunPolicy(save_every=1),
        checkpoint_dir=folder,
    )
    run.train()
    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    train(folder, "parent", *HELD, **TINY)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that holds `parent`."""
    shutil.copytree(original / "parent", tmp_path / "parent")
    return tmp_path


def loaded(folder: Path) -> tuple[Checkpoint, AcceptedPairs, TrainingRecord]:
    checkpoint = load_checkpoint(folder)
    pairs, record = checkpoint.accepted_pairs(), checkpoint.training
    assert pairs is not None
    assert record is not None
    return checkpoint, pairs, record


def test_training_leaves_its_pairs_and_what_it_solves(original: Path) -> None:
    checkpoint, pairs, record = loaded(original / "parent")
    assert len(pairs) == 4
    assert {each.pair for each in pairs} == record.pair_hashes
    flags = pairs.solved_with(checkpoint.digest)
    assert flags is not None
    measured = json.loads((original / "parent" / "measured.json").read_text())
    for rule in HaltedBy:
        assert int(flags[rule].sum()) == measured["training_examples"][rule]["solved"]
    assert measured["parent"] is None
    # Those of a step are of other weights than the best, perhaps: nobody measured all of them.
    _, of_step, _ = loaded(original / "parent" / "step_1")
    assert list(of_step) == list(pairs)
    assert of_step.solved is None


def test_what_the_parent_holds_is_trained_and_kept(folder: Path) -> None:
    _, before, old = loaded(folder / "parent")
    run = train(folder, "next", *NEW, **FURTHER)
    assert len(run.training) == 6
    checkpoint, pairs, record = loaded(folder / "next")
    assert list(pairs)[:4] == list(before)
    assert len(pairs) == 6
    assert old.pair_hashes < record.pair_hashes
    assert len(record.pair_hashes) == 5
    assert record.accepted is not None
    assert len(record.accepted.texts.prompts) == 5
    # Answers stay in their rows: the parent's further one in its own.
    assert record.answers == old.answers
    assert pairs.solved_with(checkpoint.digest) is not None


def test_a_run_that_replays_is_gentle_unless_told_otherwise(folder: Path) -> None:
    def used(name: str, **options: Any) -> tuple[float, float]:  # noqa: ANN401
        trainer = train(folder, name, *NEW, **FURTHER, **options).trainer
        return trainer.config.lr, trainer.config.full_share

    assert used("next") == (4e-4, 1)
    assert used("told", lr=1e-2, full_share=0.2) == (1e-2, 0.2)
    assert used("forgetful", forget=True) == (1e-3, 0)


def test_what_was_replayed_is_said_and_counted_apart(folder: Path) -> None:
    parent = load_checkpoint(folder / "parent")
    train(folder, "next", *NEW, **FURTHER)
    measured = json.loads((folder / "next" / "measured.json").read_text())
    assert measured["parent"] == {
        "name": "parent",
        "digest": parent.digest,
        "replayed": 4,
        "forgotten": 0,
    }
    assert measured["new_messages"] == 2
    apart, whole = measured["solved_apart"], measured["training_examples"]
    for rule in HaltedBy:
        assert (apart["new"][rule]["of"], apart["replayed"][rule]["of"]) == (2, 4)
        solved = apart["new"][rule]["count"] + apart["replayed"][rule]["count"]
        assert solved == whole[rule]["solved"]


def test_an_identical_pair_is_one(folder: Path) -> None:
    run = train(folder, "next", HELD[0], NEW[0], **FURTHER)
    assert len(run.training) == 5
    assert run.about["new_messages"] == 1
    assert len(loaded(folder / "next")[1]) == 5


def test_nothing_is_kept_of_what_is_forgotten(folder: Path) -> None:
    run = train(folder, "next", HELD[0], *NEW, **FURTHER, forget=True)
    assert run.parent is not None
    assert (run.parent.replayed, run.parent.forgotten) == (0, 2)
    _, pairs, record = loaded(folder / "next")
    assert len(pairs) == len(record.pair_hashes) == 3
    assert run.solved_apart is None


def test_there_is_nothing_to_forget_without_a_parent(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="forget: there is nothing to forget without"):
        train(tmp_path, "run", *NEW, **TINY, forget=True)


# Contradictions with what the parent holds.

OTHER = pair("tests", "refused")


def test_a_contradiction_with_the_parent_is_named_before_training(folder: Path) -> None:
    with pytest.raises(ContradictionError) as caught:
        train(folder, "next", NEW[0], OTHER, **FURTHER)
    data = folder / "next.jsonl"
    assert caught.value.named == (
        f"{data}: line 2 and a pair that the checkpoint holds: two completions for one prompt",
    )
    assert str(caught.value).startswith(f"{data}: contradicting completions for one prompt in 1 ")
    assert not (folder / "next").exists()


@pytest.mark.parametrize(
    ("choice", "replayed", "new", "left_out"),
    [("first", 4, 1, 1), ("last", 3, 2, 1), ("all", 4, 2, 0)],
)
def test_a_contradiction_with_the_parent_is_resolved_as_asked(
    folder: Path, choice: str, replayed: int, new: int, left_out: int
) -> None:
    run = train(folder, "next", NEW[0], OTHER, **FURTHER, contradictions=choice)
    assert run.parent is not None
    assert run.parent.replayed == replayed
    assert run.about["new_messages"] == new
    assert run.about["lines_left_out"] == left_out
    assert len(loaded(folder / "next")[1]) == replayed + new
    # Nothing contradicts in what is held now.
    train(folder, "third", NEW[1], **FURTHER | {"init_from": "next"})
    assert len(loaded(folder / "third")[1]) == replayed + new + 1


def test_an_alternative_to_what_the_parent_holds_gets_a_row_of_its_own(folder: Path) -> None:
    _, before, _ = loaded(folder / "parent")
    held = next(iter(before))
    train(folder, "next", {**OTHER, "alternative": True}, **FURTHER)
    _, _, record = loaded(folder / "next")
    rows = record.answers[held.pair]
    assert rows[held.target] == held.example.puzzle_id
    assert len(rows) == 2
    assert max(rows.values()) >= 11


# A parent whose pairs cannot be replayed.


def refusal(folder: Path, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises((OptionsError, CheckpointError)) as caught:
        train(folder, "next", *NEW, **FURTHER, **options)
    assert not (folder / "next").exists()
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_pairs_without_tokens_are_not_forgotten_in_silence(folder: Path) -> None:
    (folder / "parent" / ACCEPTED_PAIRS).unlink()
    assert refusal(folder) == (
        "init_from parent: holds 3 accepted pairs but not their tokens: run `sqe-hrm checkpoint "
        "record parent --data-path FILE`, or give --forget and lose them"
    )
    run = train(folder, "next", *NEW, **FURTHER, forget=True)
    assert run.parent is not None
    assert run.parent.forgotten == 3


def test_a_parent_without_a_record_says_so(folder: Path) -> None:
    for name in (ACCEPTED_PAIRS, TRAINING_PAIRS):
        (folder / "parent" / name).unlink()
    assert refusal(folder) == (
        "init_from parent: has no record of what it was trained on, so nothing of it can be "
        "replayed: give --forget and lose it"
    )
    run = train(folder, "next", *NEW, **FURTHER, forget=True)
    assert run.parent is not None
    assert run.parent.forgotten is None


def test_damaged_pairs_and_those_of_another_conversion_are_refused(folder: Path) -> None:
    file = folder / "parent" / ACCEPTED_PAIRS
    sound = file.read_bytes()
    file.write_bytes(sound[: len(sound) // 2])
    assert refusal(folder).startswith(f"{file}: damaged, or of another version: ")
    pairs = AcceptedPairs.of([], 12)
    pairs.write(file)
    assert refusal(folder).startswith(f"{file}: for 12 tokens, but the checkpoint's conversion has")


# Resuming, holding out, noise and tasks.


def test_a_run_is_resumed_without_its_parent(folder: Path) -> None:
    train(folder, "whole", *NEW, **FURTHER | {"steps": 3})
    shutil.copytree(folder / "whole" / "step_1", folder / "cut" / "step_1")
    shutil.rmtree(folder / "parent")
    data = folder / "whole.jsonl"
    run = prepare_run(data, folder / "cut", TrainingOptions(), resume=True, checkpoint_dir=folder)
    assert run.parent is not None
    assert (run.parent.name, run.parent.replayed, len(run.training)) == ("parent", 4, 6)
    run.train()
    ends = [load_checkpoint(folder / name / "step_3") for name in ("whole", "cut")]
    assert ends[0].digest == ends[1].digest
    assert ends[0].training == ends[1].training
    assert list(loaded(folder / "cut")[1]) == list(loaded(folder / "whole")[1])


def test_a_step_without_what_was_replayed_is_not_resumed(folder: Path) -> None:
    train(folder, "next", *NEW, **FURTHER)
    (folder / "next" / "step_2" / ACCEPTED_PAIRS).unlink()
    with pytest.raises(CheckpointError, match=r"step_2: lacks accepted\.pairs, which the run need"):
        prepare_run(folder / "next.jsonl", folder / "next", TrainingOptions(), resume=True)


def test_what_the_parent_holds_is_not_held_out(folder: Path) -> None:
    more = [pair(word) for word in ("one", "two")]
    run = train(folder, "next", *NEW, *more, **FURTHER, held_out_share=0.5)
    assert run.held_out is not None
    assert (len(run.training), len(run.held_out)) == (6, 2)
    held_out = write_jsonl(folder / "held.jsonl", HELD[0])
    with pytest.raises(TrainingDataError, match="has the puzzle and input tokens of a training"):
        train(folder, "other", *NEW, **FURTHER, held_out=held_out)


def test_prompts_stay_varied(tmp_path: Path) -> None:
    train(tmp_path, "parent", pair("tests", puzzle_id=1), **TINY, prompt_noise=2)
    run = train(tmp_path, "next", pair("audit", puzzle_id=2), **FURTHER)
    assert run.options.prompt_noise == 2
    assert loaded(tmp_path / "next")[2].varied_prompts == 2
    run = train(tmp_path, "exact", pair("audit", puzzle_id=2), **FURTHER, prompt_noise=0)
    assert loaded(tmp_path / "exact")[2].varied_prompts == 0


def test_no_task_is_found_that_a_replayed_prompt_would_change_to(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(2 * ENOUGH_PROMPTS)]
    held, new = words[:ENOUGH_PROMPTS], words[ENOUGH_PROMPTS:]
    train(tmp_path, "parent", *(pair(word) for word in held), **TINY)
    train(tmp_path, "next", *(pair(word) for word in new), **FURTHER, find_tasks=True)
    checkpoint, pairs, record = loaded(tmp_path / "next")
    assert checkpoint.conversion.tasks == ()
    assert len(pairs) == len(record.pair_hashes) == len(words)


def test_the_puzzles_of_replayed_pairs_stay(folder: Path) -> None:
    before = {each.pair: each.example.puzzle_id for each in loaded(folder / "parent")[1]}
    train(folder, "next", pair("tests", task="planning"), **FURTHER)
    after = {each.pair: each.example.puzzle_id for each in loaded(folder / "next")[1]}
    assert before.items() < after.items()
    (new,) = after.keys() - before.keys()
    assert new == pair_hash(
        after[new], next(iter(loaded(folder / "next")[1])).example.input_sequence
    )
