"""How many steps a run takes, and how many puzzle rows, if nobody says.

Knows numbers of examples alone. An episode is the work on one example until it halts, which takes
at most `halt_max_steps` of a row's steps.
"""

from math import ceil

MOST_EPISODES = 100
"""Episodes of each example in a run of the default length, if there are few examples. Measured: 45
were enough for 33 messages and 62 for 24; 64 left 3 of 84 unlearned under one rule. A run that has
learned everything stops before its end."""

LEAST_EPISODES = 20
"""Episodes of each of many examples: what is learned of one serves others. Measured: 12 were enough
for 500 messages, and 14 for 880 of 22 tasks."""

EPISODES_TO_SHARE = 8000
"""Episodes that all examples share beside their own `LEAST_EPISODES`."""

FEW_SHARE = 0.5
"""Share of the default length below which a run learns little."""

NOISE_FACTOR = 2.5
"""Prompt noise takes two to three times the steps: 28 messages were learned after 1,200 without it
and after 1,600 to 4,000 with it."""

ROWS_PER_MESSAGE = 10
"""Puzzle rows for each message whose row the hash of its prompt chooses: one in ten then shares its
row with another. A row costs as many numbers as the network is wide, and training touches those in
use alone."""

LEAST_ROWS = 1000

MOST_ROWS = 2**19
"""Half of the largest puzzle table, so that tasks and further answers find room behind them."""

MUCH_SHARED = 0.2
"""Share of messages with a shared puzzle row above which more rows are worth their memory."""


def default_episodes(examples: int, *, noise: bool) -> float:
    """Episodes of each example in a run of the default length.

    A run that replays what its network holds already needs as many as one that starts from nothing.

    Args:
        examples: Examples, of which a message may have several.
        noise: Whether prompts are varied.
    """
    episodes = min(MOST_EPISODES, LEAST_EPISODES + EPISODES_TO_SHARE / examples)
    return episodes * (NOISE_FACTOR if noise else 1)


def default_steps(examples: int, batch_size: int, halt_max_steps: int, *, noise: bool) -> int:
    """Optimiser steps after which each example had its episodes, in whole hundreds.

    `batch_size` is the number of examples per step, and never more than there are; `halt_max_steps`
    are the ACT steps of an episode at most. The others are those of `default_episodes`.
    """
    episodes = default_episodes(examples, noise=noise)
    steps = episodes * examples * halt_max_steps / min(batch_size, examples)
    return 100 * ceil(steps / 100)


def episodes_of(steps: int, examples: int, batch_size: int, halt_max_steps: int) -> float:
    """Episodes that each example has in `steps` at least; earlier halting makes more of them."""
    return steps * min(batch_size, examples) / (halt_max_steps * examples)


def few_episodes(examples: int, *, noise: bool) -> float:
    """Episodes of each example below which little is learned."""
    return FEW_SHARE * default_episodes(examples, noise=noise)


def default_rows(messages: int) -> int:
    """Puzzle rows for `messages` whose prompts' hashes choose them, in whole thousands."""
    rows = 1000 * ceil(ROWS_PER_MESSAGE * messages / 1000)
    return min(max(rows, LEAST_ROWS), MOST_ROWS)
