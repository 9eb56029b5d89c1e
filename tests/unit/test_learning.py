"""The corpus of tasks is what it claims to be, and the experiments on learning run."""

import json
from pathlib import Path

import pytest

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from schemas import SQEMessage
from tests.benchmarks import learn_rules, learn_variation
from tests.benchmarks.corpus import TASKS, Task, mixed, split

CONVERTER = Converter(ConversionConfig(version=2))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_completion_follows_from_its_prompt(task: Task) -> None:
    pairs = [task.pair(filling) for filling in task.fillings()]
    assert len(pairs) >= 80
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    # A derived value stands for its slot, so one filling gives one completion.
    assert {slot for slot, _ in task.derived.values()} <= task.slots.keys()
    for rule_slot, rule in task.derived.values():
        assert rule.keys() == set(task.slots[rule_slot])
    for pair in pairs[:3]:
        SQEMessage.create(agent_id="a", **pair.fields)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_slot_is_words_of_its_own(task: Task) -> None:
    for filling in task.fillings()[:20]:
        words = task.pair(filling).prompt.split()
        for value in filling.values():
            assert set(value.split()) <= set(words)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_twin_has_the_same_prompts_and_no_completion_in_common(task: Task) -> None:
    twin = task.twin()
    for filling in task.fillings():
        own, other = task.pair(filling), twin.pair(filling)
        assert own.prompt == other.prompt
        assert own.completion != other.completion
    ours, theirs = (split([each], fillings=40, unseen=10, seed=0) for each in (task, twin))
    for own_part, other_part in zip(ours, theirs, strict=True):
        assert [pair.prompt for pair in own_part] == [pair.prompt for pair in other_part]
        assert {pair.task for pair in other_part} == {f"{task.name}-twin"}


def test_a_split_holds_out_the_same_pairs_for_any_number_of_fillings() -> None:
    few, many = (split(TASKS, fillings=count, unseen=10, seed=3) for count in (20, 40))
    assert {pair.prompt for pair in few.unseen} <= {pair.prompt for pair in many.unseen}
    assert len(many.trained) == 40 * len(TASKS)
    assert not {pair.prompt for pair in many.trained} & {pair.prompt for pair in many.unseen}
    other = split(TASKS, fillings=20, unseen=10, seed=4)
    assert other.unseen != few.unseen


def test_a_pair_with_a_value_that_was_never_trained_is_left_out() -> None:
    parts = split(TASKS, fillings=2, unseen=30, seed=0)
    seen = {(pair.task, *item) for pair in parts.trained for item in pair.filling.items()}
    unseen = [(pair.task, *item) for pair in parts.unseen for item in pair.filling.items()]
    assert 0 < len(parts.unseen) < 30 * len(TASKS)
    assert seen.issuperset(unseen)


def test_a_mixture_has_as_many_pairs_as_asked_for_of_all_tasks() -> None:
    pairs = mixed(500)
    assert len({pair.prompt for pair in pairs}) == len(pairs) == 500
    assert {pair.task for pair in pairs} == {task.name for task in TASKS}
    assert pairs == mixed(500) != sorted(pairs, key=lambda pair: pair.task)


SMALL = ("--steps", "2", "--measure-every", "1", "--hidden-size", "16", "--batch-size", "4")


def test_the_experiment_on_rules_runs(tmp_path: Path) -> None:
    output = tmp_path / "rules.jsonl"
    sizes = ("--tasks", "2", "--fillings", "12", "--unseen", "2", "--no-puzzles")
    learn_rules.main([*SMALL, *sizes, "--output", str(output)])
    start, first, last = map(json.loads, output.read_text().splitlines())
    assert start["trained"] == 24
    assert start["baselines"].keys() == {
        *("commonest token", "commonest by position", "bigram", "lookup", "nearest neighbour")
    }
    assert start["baselines"]["lookup"]["solved"] == 0
    assert first["unseen q"]["of"] == start["unseen_pairs"] == sum(first["unsolved"].values())
    assert last["trained q"]["of"] == last["trained max_steps"]["of"] == 24


def test_the_experiment_on_twins_runs(tmp_path: Path) -> None:
    output = tmp_path / "twins.jsonl"
    sizes = ("--tasks", "1", "--fillings", "12", "--unseen", "2", "--twins", "--conversion", "1")
    learn_rules.main([*SMALL, *sizes, "--output", str(output)])
    start, _, last = map(json.loads, output.read_text().splitlines())
    assert (start["trained"], start["twins"]) == (24, True)
    assert last["unseen q"]["of"] == start["unseen_pairs"] > 0
    # Both rules are trained on the same prompts, and the puzzle says which one is asked for.
    assert start["baselines"]["lookup"]["solved"] == 0


def test_the_experiment_on_variations_runs(tmp_path: Path) -> None:
    output = tmp_path / "variation.jsonl"
    sizes = ("--messages", "3", "--variants", "2", "--prompt-noise", "3")
    learn_variation.main([*SMALL, *sizes, "--output", str(output)])
    start, _, last = map(json.loads, output.read_text().splitlines())
    assert start["prompt_noise"] == 3
    assert start["nearest neighbour"]["exact"] == 3
    assert {name: last[name]["of"] for name in last.keys() - {"step", "loss", "seconds"}} == {
        "exact": 3,
        "varied 1": 6,
        "varied 2": 6,
        "varied 3": 6,
        "exact, changed answer": 3,
        "varied, changed answer": 18,
        "other prompt of the file": 12,
        "unseen prompt": 12,
    }
