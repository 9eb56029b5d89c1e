"""One sequence of tokens from the logits of several members: averaged, by vote, or stacked.

Knows tensors of logits; nothing of networks, checkpoints or files. Symbols: M members, S sequence
length, V vocabulary, N tokens. Everything is computed in float64 on the CPU, so that all machines
give the same tokens.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.model.config import TokenHead
from hrm.model.outputs import log_probabilities

PRIOR_STRENGTH = 1.0
"""Strength of stacking's prior: a normal distribution of deviation 1 around the weighted average,
which weighs as much as a few tokens. Less fits the noise of a small calibration file, more stays
at the average."""

_MAX_ITERATIONS = 500
_HISTORY = 20
"""Limits of LBFGS. A convex problem of a few hundred numbers converges well within them."""


class Strategy(StrEnum):
    """How an ensemble chooses the token of a position."""

    WEIGHTED_AVERAGE = "weighted_average"
    """The token with the largest weighted mean of the members' log-probabilities."""
    VOTING = "voting"
    """The token that most members choose. A tie goes to its heaviest member, then to the first."""
    STACKING = "stacking"
    """Logistic regression on all log-probabilities, fitted on calibration examples."""


def weighted_average(
    logits: Tensor, weights: Tensor, head: TokenHead = TokenHead.STABLEMAX
) -> Tensor:
    """Turn logits (M, S, V) of members with one kind of head, and weights (M,), into tokens.

    int64 (S,). The smallest id wins a tie.
    """
    return torch.einsum("m,msv->sv", weights, log_probabilities(logits, head)).argmax(-1)


def vote(logits: Tensor, weights: Tensor) -> Tensor:
    """Turn logits (M, S, V) and weights (M,) into tokens int64 (S,)."""
    members, _, vocabulary = logits.shape
    votes = F.one_hot(logits.argmax(-1), vocabulary).double()
    # Each member breaks ties by its rank. Ranks are distinct, and always less than one vote.
    order = weights.argsort(descending=True, stable=True)
    rank = torch.empty(members, dtype=torch.float64)
    rank[order] = torch.arange(members, 0, -1, dtype=torch.float64) / (members + 1)
    strongest = (votes * rank.view(-1, 1, 1)).amax(0)
    return (votes.sum(0) + strongest).argmax(-1)


@dataclass(frozen=True, eq=False)
class StackingCoefficients:
    """A logistic regression from all members' log-probabilities to tokens, float64."""

    weight: Tensor
    """(V, M V), with the members one after the other."""
    bias: Tensor
    """(V,)."""

    def tokens(self, logits: Tensor) -> Tensor:
        """Turn logits (M, S, V) into tokens int64 (S,)."""
        return self._scores(log_probabilities(logits)).argmax(-1)

    def _scores(self, log_probabilities_: Tensor) -> Tensor:
        """Turn log-probabilities (M, N, V) into scores (N, V)."""
        return F.linear(log_probabilities_.transpose(0, 1).flatten(1), self.weight, self.bias)

    @classmethod
    def average(cls, weights: Tensor, vocabulary: int) -> "StackingCoefficients":
        """Coefficients that make stacking the weighted average by `weights`, float64 (M,)."""
        identity = torch.eye(vocabulary, dtype=torch.float64)
        weight = torch.cat([share * identity for share in weights], dim=1)
        return cls(weight, torch.zeros(vocabulary, dtype=torch.float64))

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor, weights: Tensor) -> "StackingCoefficients":
        """Fit coefficients on calibration tokens.

        Minimises cross-entropy plus the distance from the weighted average, so that the result
        stays at the average wherever the tokens say nothing. The problem is convex and nothing is
        random: equal input gives an equal result.

        Args:
            logits: The members' logits (M, N, V).
            targets: The right tokens, int64 (N,).
            weights: The members' weights, float64 (M,).
        """
        prior = cls.average(weights, logits.shape[-1])
        features = log_probabilities(logits)
        fitted = cls(prior.weight.clone().requires_grad_(), prior.bias.clone().requires_grad_())
        optimizer = torch.optim.LBFGS(
            (fitted.weight, fitted.bias),
            max_iter=_MAX_ITERATIONS,
            history_size=_HISTORY,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            distance = (fitted.weight - prior.weight).square().sum() + fitted.bias.square().sum()
            loss = F.cross_entropy(fitted._scores(features), targets, reduction="sum")
            return (loss + PRIOR_STRENGTH / 2 * distance) / len(targets)

        def closure() -> float:
            optimizer.zero_grad()
            value = objective()
            value.backward()  # type: ignore[no-untyped-call]
            return value.item()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return cls(fitted.weight.detach(), fitted.bias.detach())
