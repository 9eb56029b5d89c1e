"""Templates of prompts: what many have in common, and which prompts fit."""

import random
from collections.abc import Sequence

import pytest

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.templates import common_words, find_templates, fits
from hrm.data.variations import Words
from tests.benchmarks.corpus import TASKS, Pair, split

WORDS = Converter(ConversionConfig(version=2)).words


def words_of(pairs: Sequence[Pair]) -> list[Words]:
    return [WORDS(pair.prompt) for pair in pairs]


def test_common_words_are_those_of_both_in_one_order() -> None:
    assert common_words((1, 2, 3, 4, 5), (9, 1, 3, 9, 9, 4, 2)) == (1, 3, 4)
    assert common_words((1, 2), (3, 4)) == ()


@pytest.mark.parametrize(
    ("prompt", "fit"),
    [
        ((1, 2, 3), True),
        ((9, 1, 9, 2, 3, 9), True),
        ((9, 1, 9, 2, 3, 9, 9), False),
        ((1, 3, 2), False),
        ((1, 2), False),
    ],
    ids=["exact", "with slots", "mostly slots", "other order", "shorter"],
)
def test_a_prompt_fits_with_all_words_in_order_and_not_many_others(
    prompt: Words, *, fit: bool
) -> None:
    assert fits((1, 2, 3), prompt) is fit


def test_a_template_shows_its_slots_in_its_first_prompt() -> None:
    (template,) = find_templates([(1, 7, 2, 3, 8), (1, 9, 9, 2, 3), (1, 2, 3, 6)], 3)
    assert template.words == (1, 2, 3)
    assert template.prompts == 3
    assert template.slots == [1, None, 2, 3, None]


def test_only_different_prompts_count() -> None:
    prompts = [(1, 2, 3), (1, 2, 3), (1, 2, 4), (7, 8)]
    assert [each.prompts for each in find_templates(prompts, 1)] == [2, 1]
    assert find_templates(prompts, 3) == []
    assert find_templates([], 1) == []


@pytest.mark.parametrize("seed", range(3))
def test_every_task_of_a_corpus_is_found_and_no_other(seed: int) -> None:
    parts = split(TASKS, fillings=20, unseen=5, seed=seed)
    prompts = words_of(parts.trained)
    random.Random(seed).shuffle(prompts)
    templates = [each.words for each in find_templates(prompts, 20)]
    assert len(templates) == len(TASKS)
    fitting: dict[str, set[Words]] = {}
    for pair in parts.unseen:
        (template,) = (each for each in templates if fits(each, WORDS(pair.prompt)))
        fitting.setdefault(pair.task, set()).add(template)
    assert all(len(found) == 1 for found in fitting.values())
    assert len(set().union(*fitting.values())) == len(fitting)
