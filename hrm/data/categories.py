"""Guesses what an SQE agent was asked for from its prompt's words.

Knows one rule table. A message's own `category` goes before it; the caller sees to that.
"""

import re
from collections import Counter

from schemas import Category

RULES: dict[Category, str] = {
    # What is tested comes first: the words of the last two rules occur in prompts on any subject.
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
    # No "agent": nearly every prompt speaks of a multi-agent system.
    Category.AGENT_COORDINATION: (
        r"coordinat\w*|collaborat\w*|consensus|orchestrat\w*|negotiat\w*|handoffs?|"
        r"communicat\w*|messaging|swarms?|delegat\w*"
    ),
    # How it is tested.
    Category.TEST_AUTOMATION: r"automat\w*|scripts?|pytest|selenium|playwright|frameworks?",
    Category.TEST_PLANNING: (
        r"plan|plans|planning|strateg\w*|scenarios?|cases?|coverage|approach|requirements?"
    ),
}
"""Words (regular expressions) that speak for a category, by precedence."""

_WORDS = re.compile(
    r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in RULES.items()) + r")\b"
)


def categorize(prompt: str) -> Category:
    """The category that most of the prompt's words speak for; the earlier rule wins a tie.

    `Category.OTHER` where no word speaks for any.
    """
    found = {(match.lastgroup, match.group()) for match in _WORDS.finditer(prompt.lower())}
    counts = Counter(name for name, _ in found)
    return max(RULES, key=lambda category: counts[category]) if counts else Category.OTHER
