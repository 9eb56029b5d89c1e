"""The bounded vocabularies that messages, verdicts and metrics share."""

from enum import StrEnum


class Category(StrEnum):
    """What an SQE agent was asked for. Rules that guess it from a prompt: `hrm.data.categories`."""

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
    """By characters of prompt and completion together."""

    EASY = "easy"
    """Fewer than 500."""
    MEDIUM = "medium"
    """Fewer than 1500."""
    HARD = "hard"
    """1500 and more."""
