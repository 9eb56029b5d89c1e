"""The bounded vocabularies that messages, verdicts and metrics share."""

from enum import StrEnum


class Category(StrEnum):
    """Kind of work an SQE agent was asked for; `hrm.data.categories` guesses it from the prompt."""

    TEST_PLANNING = "test_planning"
    """Test planning and strategy."""
    TEST_AUTOMATION = "test_automation"
    """Automated test scripts."""
    PERFORMANCE_SECURITY = "performance_security"
    """Performance and security testing."""
    CI_CD = "ci_cd"
    """CI/CD and deployment testing."""
    MONITORING = "monitoring"
    """Monitoring and observability."""
    AGENT_COORDINATION = "agent_coordination"
    """Agent coordination testing."""
    OTHER = "other"
    """None of the above."""


class Difficulty(StrEnum):
    """Difficulty class, by the number of characters in prompt and completion together."""

    EASY = "easy"
    """Fewer than 500 characters."""
    MEDIUM = "medium"
    """500 to 1499 characters."""
    HARD = "hard"
    """1500 characters or more."""
