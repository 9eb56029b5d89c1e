"""Guesses the category of an SQE agent's task from the words of its prompt.

Knows one rule table. The caller prefers a message's own `category` to this guess.
"""

import re
from functools import lru_cache

from schemas import Category

RULES: dict[Category, str] = {
    # The subject under test comes first: words of the last two rules occur in prompts of any kind.
    Category.PERFORMANCE_SECURITY: (
        r"performance|load|stress|latency|throughput|scalab\w*|benchmark\w*|soak|"
        r"securit\w*|secure\w*|penetration|vulnerab\w*|threat\w*|authenti\w*|authoriz\w*|"
        r"encrypt\w*|owasp|fuzz\w*"
    ),
    Category.CI_CD: (
        r"ci|cd|builds?|deploy\w*|releas\w*|rollback\w*|rollout\w*|canary|"
        r"docker|containers?|kubernetes"
    ),
    Category.MONITORING: (
        r"monitor\w*|observab\w*|alert\w*|telemetry|metrics?|logging|tracing|drift"
    ),
    # "agent" is left out: nearly every prompt mentions a multi-agent system.
    Category.AGENT_COORDINATION: (
        r"coordinat\w*|collaborat\w*|consensus|orchestrat\w*|negotiat\w*|handoffs?|"
        r"communicat\w*|messaging|swarms?|delegat\w*"
    ),
    # The form of the test comes last.
    Category.TEST_AUTOMATION: r"automat\w*|scripts?|pytest|selenium|playwright|frameworks?",
    Category.TEST_PLANNING: (
        r"plan|plans|planning|strateg\w*|scenarios?|cases?|coverage|approach|requirements?"
    ),
}
"""Words (regular expressions) that indicate each category, in order of precedence."""

_WORD = re.compile(r"\w+")

_RULE = re.compile("|".join(f"(?P<{name}>{words})" for name, words in RULES.items()))


LONGEST_CACHED_WORD = 64
"""Characters of the longest word whose category is kept. Longer ones are rare and seldom repeat,
and one message may be a single word of 256 KiB."""


def _rule_of(word: str) -> str | None:
    """The category that a word indicates; None if it indicates none."""
    match = _RULE.fullmatch(word)
    return match and match.lastgroup


_kept_rule_of = lru_cache(maxsize=4096)(_rule_of)


def categorize(prompt: str) -> Category:
    """The category that most distinct words of the prompt indicate; the earlier rule wins a tie.

    `Category.OTHER` if no word indicates any.
    """
    # A rule matches whole words only, and looking up each of them takes a quarter of the time of
    # searching the prompt for every rule.
    words = set(_WORD.findall(prompt.lower()))
    found = [
        (_kept_rule_of if len(word) <= LONGEST_CACHED_WORD else _rule_of)(word) for word in words
    ]
    categories = [name for name in found if name is not None]
    return max(RULES, key=categories.count) if categories else Category.OTHER
