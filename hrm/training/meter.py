"""Measurements while a run trains, and at its end.

Knows messages and which of them are measured; nothing of steps, ranks or files.
"""

import random
from dataclasses import dataclass

import torch

from hrm.evaluation.measurement import BothRules, EachUnderBothRules, measure_both_rules
from hrm.model.batch import Messages
from hrm.model.network import HRM, Levels


@dataclass(frozen=True)
class Complete:
    """Figures of each message of a run, under both halting rules.

    The messages are in the order of the run's `training` and `held_out`.
    """

    training: EachUnderBothRules
    held_out: EachUnderBothRules | None


class Meter:
    """Measures a fixed sample of a run's messages, or all of them.

    Args:
        training: The training messages.
        held_out: Messages that are never trained on.
        sample: Messages to draw of each set; a smaller set is measured whole.
        seed: Seed of the draw.
        replayed: Training messages that are replayed, which are the first. Half of the sample are
            new ones, if there are as many: a few new ones must not be missed among many others.
    """

    def __init__(
        self,
        training: Messages,
        held_out: Messages | None,
        *,
        sample: int,
        seed: int,
        replayed: int = 0,
    ) -> None:
        self._training, self._held_out = training, held_out
        self._sample = _drawn(training, sample, seed, replayed)
        self._held_out_sample = None if held_out is None else _drawn(held_out, sample, seed)
        self._complete: tuple[int, Complete] | None = None

    @property
    def sampled(self) -> bool:
        """Whether the sample lacks some of the training messages."""
        return len(self._sample) < len(self._training)

    def measure(
        self, network: HRM, step: int, levels: Levels | None = None
    ) -> tuple[BothRules, BothRules | None]:
        """Figures of the samples of both sets.

        Args:
            network: The network with the weights of `step`.
            step: Optimiser steps done.
            levels: Another form of the network's levels to compute with (default: its own).
        """
        if self._sample is self._training and self._held_out_sample is self._held_out:
            found = self.measure_all(network, step, levels)
            return found.training.totals, None if found.held_out is None else found.held_out.totals
        return (
            measure_both_rules(network, self._sample, levels=levels).totals,
            None
            if self._held_out_sample is None
            else measure_both_rules(network, self._held_out_sample, levels=levels).totals,
        )

    def measure_all(self, network: HRM, step: int, levels: Levels | None = None) -> Complete:
        """Figures of all messages; those of the last `step` are not measured twice."""
        if self._complete is None or self._complete[0] != step:
            held_out = self._held_out
            found = Complete(
                measure_both_rules(network, self._training, levels=levels),
                None if held_out is None else measure_both_rules(network, held_out, levels=levels),
            )
            self._complete = step, found
        return self._complete[1]


def _drawn(messages: Messages, count: int, seed: int, replayed: int = 0) -> Messages:
    if len(messages) <= count:
        return messages
    # Not cryptographic: the same seed has to draw the same messages.
    source = random.Random(seed)  # noqa: S311
    new = len(messages) - replayed
    drawn = min(new, max(count // 2, count - replayed)) if replayed else count
    numbers = source.sample(range(replayed, len(messages)), drawn)
    numbers += source.sample(range(replayed), count - drawn)
    return messages.select(torch.tensor(numbers, device=messages.message.device))
