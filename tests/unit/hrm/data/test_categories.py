"""`hrm.data.categories` follows its rule table."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.data.categories import RULES, categorize
from schemas import Category


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("Write a test plan for the billing service.", Category.TEST_PLANNING),
        ("Automate the regression suite with pytest", Category.TEST_AUTOMATION),
        ("Check the login page under LOAD", Category.PERFORMANCE_SECURITY),
        ("Find vulnerabilities of the upload form", Category.PERFORMANCE_SECURITY),
        ("Test the CI/CD chain", Category.CI_CD),
        ("Which alerts should the queue have?", Category.MONITORING),
        ("Test how agents reach consensus", Category.AGENT_COORDINATION),
        ("Translate this poem", Category.OTHER),
        ("", Category.OTHER),
    ],
)
def test_the_words_of_a_prompt_give_its_category(prompt: str, category: Category) -> None:
    assert categorize(prompt) is category


def test_in_a_tie_the_subject_wins_over_the_form() -> None:
    assert categorize("A test plan for the deployment") is Category.CI_CD


def test_more_words_win_over_precedence() -> None:
    assert categorize("Automated scripts for deployment") is Category.TEST_AUTOMATION


def test_a_repeated_word_counts_once() -> None:
    assert categorize("plan plan plan deployment") is Category.CI_CD


def test_words_inside_other_words_do_not_count() -> None:
    assert categorize("city cdrom explanation") is Category.OTHER


def test_mentioning_a_multi_agent_system_is_not_coordination() -> None:
    assert categorize("a multi-agent system") is Category.OTHER


def test_every_category_except_other_has_a_rule() -> None:
    assert set(RULES) == set(Category) - {Category.OTHER}


def test_no_word_indicates_two_categories() -> None:
    for rule in RULES.values():
        for word in rule.split("|"):
            written = word.replace(r"\w*", "").replace("?", "")
            assert [other for other in RULES.values() if re.fullmatch(other, written)] == [rule]


def test_a_word_too_long_to_be_kept_counts_too() -> None:
    assert categorize("plan monitor" + "x" * 100) is Category.MONITORING


RULE_WORDS = ["load", "ci", "cd", "builds", "monitors", "agents", "scripts", "plan", "été", "K8s"]


@given(st.lists(st.sampled_from([*RULE_WORDS, *" -_/.,"]), max_size=12).map("".join))
def test_words_are_found_as_by_searching_the_prompt_for_every_rule(prompt: str) -> None:
    rules = "|".join(f"(?P<{name}>{words})" for name, words in RULES.items())
    matches = re.finditer(rf"\b(?:{rules})\b", prompt.lower())
    counts = Counter(name for name, _ in {(match.lastgroup, match[0]) for match in matches})
    first = max(RULES, key=lambda category: counts[category]) if counts else Category.OTHER
    assert categorize(prompt) is first


@given(st.text())
def test_any_text_has_a_category(prompt: str) -> None:
    assert categorize(prompt) in Category
