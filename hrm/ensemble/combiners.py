"""How several members' logits become one sequence of tokens: averaged, by vote, or stacked.

Knows tensors of logits; nothing of networks, checkpoints or files. Symbols: M members, S sequence
length, V vocabulary, N tokens. All in float64 on the CPU, so that every machine says the same.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.model.outputs import log_probabilities

PRIOR_STRENGTH = 1.0
"""Of stacking: a normal prior of deviation 1 around the weighted average, as strong as what
a few tokens say. Less fits the noise of a small calibration file, more keeps to the average."""

_MAX_ITERATIONS = 500
_HISTORY = 20
"""Of LBFGS: a convex problem of a few hundred numbers converges well within these."""


class Strategy(StrEnum):
    """How an ensemble finds the token of a position."""

    WEIGHTED_AVERAGE = "weighted_average"
    """The largest weighted mean of the members' log-probabilities."""
    VOTING = "voting"
    """What most members say; of a tie, what the heaviest of its members says, then the first."""
    STACKING = "stacking"
    """Logistic regression on all log-probabilities, fitted on calibration examples."""


def weighted_average(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits (M, S, V) and weights (M,) to tokens int64 (S,); of equal ones the smallest id."""
    return torch.einsum("m,msv->sv", weights, log_probabilities(logits)).argmax(-1)


def vote(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits (M, S, V) and weights (M,) to tokens int64 (S,)."""
    members, _, vocabulary = logits.shape
    votes = F.one_hot(logits.argmax(-1), vocabulary).double()
    # Each member breaks ties by its rank: distinct, and together less than one vote.
    order = weights.argsort(descending=True, stable=True)
    rank = torch.empty(members, dtype=torch.float64)
    rank[order] = torch.arange(members, 0, -1, dtype=torch.float64) / (members + 1)
    strongest = (votes * rank.view(-1, 1, 1)).amax(0)
    return (votes.sum(0) + strongest).argmax(-1)


@dataclass(frozen=True, eq=False)
class StackingCoefficients:
    """A logistic regression from all members' log-probabilities to tokens, float64."""

    weight: Tensor
    """(V, M V): the members one after the other."""
    bias: Tensor
    """(V,)."""

    def tokens(self, logits: Tensor) -> Tensor:
        """Logits (M, S, V) to tokens int64 (S,)."""
        return self._scores(log_probabilities(logits)).argmax(-1)

    def _scores(self, log_probabilities_: Tensor) -> Tensor:
        """(M, N, V) to (N, V)."""
        return F.linear(log_probabilities_.transpose(0, 1).flatten(1), self.weight, self.bias)

    @classmethod
    def average(cls, weights: Tensor, vocabulary: int) -> "StackingCoefficients":
        """Those with which stacking is the weighted average; weights: float64 (M,)."""
        identity = torch.eye(vocabulary, dtype=torch.float64)
        weight = torch.cat([share * identity for share in weights], dim=1)
        return cls(weight, torch.zeros(vocabulary, dtype=torch.float64))

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor, weights: Tensor) -> "StackingCoefficients":
        """Fit on calibration tokens: logits (M, N, V), targets int64 (N,), weights float64 (M,).

        Minimises cross-entropy plus the distance from the weighted average, so that where the
        tokens say nothing it stays that. Convex and without chance: equal input, equal result.
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
