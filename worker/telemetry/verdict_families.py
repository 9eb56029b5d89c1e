"""The metrics of evaluated messages: names, texts, labels and buckets.

Knows what there is; nothing of how verdicts are counted, which `worker.telemetry.verdicts` does.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter

from schemas import Category, Difficulty, FailurePattern, PromptMatch, TextCheck
from worker.telemetry.families import LONG_SECONDS, PREFIX, Distribution
from worker.telemetry.labels import BOOLEANS, OUTCOMES, SENT

_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
"""Bucket limits of shares, finer towards 1, where an agent starts to drift. Those above the last
one are exactly 1: a sequence has at most 100 tokens, or is one of several parts."""

_CHANCES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
"""Bucket limits of the Q head's probability; at 0.5 it changes its mind."""

_STEPS = (1, 2, 3, 4, 8, 16)
"""Bucket limits in ACT steps; published checkpoints stop at 8 or 16."""

_SHORT = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
"""Bucket limits in seconds for the work on one text."""


class VerdictFamilies:
    """The families of a registry. The series of no checkpoint begin at 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def distribution(
            name: str, text: str, buckets: Iterable[float], *labels: str
        ) -> Distribution:
            return Distribution(
                f"{PREFIX}_{name}", text, labels, buckets=tuple(buckets), registry=registry
            )

        self.evaluations = counter(
            "evaluations_total",
            "Messages that were evaluated, each counted once. Canaries are the monitor's own "
            "messages, which no other metric of evaluations counts.",
            *("checkpoint", "lane", "outcome", "known", "difficulty", "category"),
        )
        self.failures = counter(
            "failures_total",
            "Unsolved messages, by how their answer differs from the accepted one.",
            *("checkpoint", "lane", "known", "pattern"),
        )
        self.text_checks = counter(
            "text_checks_total",
            "Messages by how their completion compares with the accepted texts, and by whether the "
            "model solved them.",
            *("checkpoint", "lane", "text", "solved"),
        )
        self.matches = counter(
            "prompt_matches_total",
            "Messages by how training knows their prompt, and by whether the model solved them.",
            *("checkpoint", "lane", "match", "solved"),
        )
        self.token_accuracy = distribution(
            "token_accuracy",
            "Share of a completion's tokens that the model predicts at their positions, of 1.",
            _SHARES,
            *("checkpoint", "lane", "known"),
        )
        self.edit_similarity = distribution(
            "edit_similarity",
            "1 - Levenshtein distance / length between a completion's tokens and the predicted "
            "ones, of 1. An inserted word costs little.",
            _SHARES,
            *("checkpoint", "lane", "known"),
        )
        self.act_steps = distribution(
            "act_steps", "ACT steps of a message.", _STEPS, *("checkpoint", "lane")
        )
        self.q_halt = distribution(
            "q_halt_probability",
            "Chance of being solved that the Q head states for a live message, of 1, by whether "
            "it is solved.",
            _CHANCES,
            "outcome",
        )
        self.q_halt_correct = counter(
            "q_halt_correct_total",
            "Messages whose last q_halt logit has the sign of their outcome.",
            "lane",
        )
        self.tokens = counter(
            "tokens_total",
            "Tokens of live completions, to compare with checkpoint_training_token_ratio.",
            *("checkpoint", "token"),
        )
        self.confusions = counter(
            "token_confusions_total",
            "Tokens of live known completions that the model predicts otherwise.",
            *("target", "predicted"),
        )
        self.truncated = counter(
            "truncated_total", "Messages with words that the model does not read.", "lane"
        )
        self.unread_words = counter(
            "unread_words_total", "Words of messages that the model does not read.", "lane"
        )
        self.queue = distribution(
            "queue_seconds",
            "Seconds from enqueuing a message until a worker took it, if its sender gave the time.",
            LONG_SECONDS,
            "queue",
        )
        self.inference = distribution(
            "inference_seconds",
            "Seconds of a message in the engine, waiting for a slot included; near 0 if its "
            "prediction is cached.",
            LONG_SECONDS,
            "queue",
        )
        self.end_to_end = distribution(
            "end_to_end_seconds",
            "Seconds from enqueuing a message until its verdict, if its sender gave the time.",
            LONG_SECONDS,
            "queue",
        )
        self.convert = distribution(
            "convert_seconds", "Seconds to check a message and to convert it into tokens.", _SHORT
        )
        self.of_checkpoints: dict[Counter | Distribution, Sequence[Iterable[str]]] = {
            self.evaluations: (SENT, OUTCOMES, BOOLEANS, Difficulty, Category),
            self.failures: (SENT, BOOLEANS, FailurePattern),
            self.text_checks: (SENT, TextCheck, BOOLEANS),
            self.matches: (SENT, PromptMatch, BOOLEANS),
            self.token_accuracy: (SENT, BOOLEANS),
            self.edit_similarity: (SENT, BOOLEANS),
            self.act_steps: (SENT,),
        }
        """Families of each checkpoint, with the values of their further labels."""
        # They start at 0, so that the first message shows as an increase.
        for outcome in OUTCOMES:
            self.q_halt.labels(outcome)
        for lane in SENT:
            for counted in (self.q_halt_correct, self.truncated, self.unread_words):
                counted.labels(lane)
            for timed in (self.queue, self.inference, self.end_to_end):
                timed.labels(lane.queue)
