"""Guesses the category of an SQE agent's task from the words of its prompt.

Knows one rule table. The caller prefers a message's own `category` to this guess.
"""

import re
from collections import Counter

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

_WORDS = re.compile(
    r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in RULES.items()) + r")\b"
)


def categorize(prompt: str) -> Category:
    """The category that most distinct words of the prompt indicate; the earlier rule wins a tie.

    `Category.OTHER` if no word indicates any.
    """
    found = {(match.lastgroup, match.group()) for match in _WORDS.finditer(prompt.lower())}
    counts = Counter(name for name, _ in found)
    return max(RULES, key=lambda category: counts[category]) if counts else Category.OTHER
