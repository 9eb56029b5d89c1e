"""Averages, votes and stacking give the tokens of their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.ensemble.combiners import StackingCoefficients, vote, weighted_average
from hrm.model.outputs import log_probabilities
from hrm.training.losses import token_cross_entropy

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def saying(*tokens: int, vocabulary: int = 4) -> torch.Tensor:
    """Logits (M, 1, V) of members that each say one token."""
    return 3.0 * torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).unsqueeze(1)


def random_logits(members: int, tokens: int, seed: int, vocabulary: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(members, tokens, vocabulary, generator=generator)


def test_log_probabilities_are_those_of_stablemax() -> None:
    # Masses: 1 / (1 + 1) = 0.5, 0 + 1 = 1, 1 + 1 = 2.
    given = log_probabilities(torch.tensor([[[-1.0, 0.0, 1.0]]]))
    assert given.dtype == torch.float64
    assert given.flatten().tolist() == pytest.approx(
        [math.log(0.5 / 3.5), math.log(1 / 3.5), math.log(2 / 3.5)]
    )


def test_log_probabilities_are_minus_the_training_loss_of_every_token() -> None:
    logits = random_logits(2, 6, seed=0)
    found = log_probabilities(logits)
    for token in range(5):
        loss = token_cross_entropy(logits, torch.full((2, 6), token))
        assert torch.allclose(found[..., token], -loss, rtol=0, atol=1e-12)


def test_the_average_follows_the_weights() -> None:
    logits = saying(1, 2)
    assert weighted_average(logits, weights(0.6, 0.4)).tolist() == [1]
    assert weighted_average(logits, weights(0.4, 0.6)).tolist() == [2]


def test_the_average_is_of_log_probabilities_and_not_of_logits() -> None:
    # Mean logits are largest at 0 (5 against 4); but the second member thinks 0 far less likely.
    logits = torch.tensor([[[10.0, 4.0, 0.0]], [[0.0, 4.0, 0.0]]])
    assert logits.mean(0).argmax(-1).tolist() == [0]
    # Log masses 11 * 1 against 5 * 5.
    assert weighted_average(logits, EVEN).tolist() == [1]


def test_the_majority_wins_whatever_the_weights() -> None:
    assert vote(saying(2, 1, 1), weights(0.9, 0.05, 0.05)).tolist() == [1]


@pytest.mark.parametrize(
    ("tokens", "shares", "wanted"),
    [
        ((1, 2), (0.4, 0.6), 2),
        ((3, 2), (0.5, 0.5), 3),
        ((1, 2, 3), (0.2, 0.3, 0.5), 3),
        ((1, 2, 2, 1), (0.2, 0.4, 0.2, 0.2), 2),
        ((2, 1, 1, 2), (0.25, 0.25, 0.25, 0.25), 2),
    ],
)
def test_ties_go_to_the_heaviest_and_then_to_the_first(
    tokens: tuple[int, ...], shares: tuple[float, ...], wanted: int
) -> None:
    assert vote(saying(*tokens), weights(*shares)).tolist() == [wanted]


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_every_strategy_follows_members_that_agree(seed: int, members: int) -> None:
    logits = random_logits(1, 7, seed).expand(members, -1, -1)
    shares = torch.arange(1, members + 1, dtype=torch.float64)
    shares = shares / shares.sum()
    wanted = logits[0].argmax(-1).tolist()
    assert weighted_average(logits, shares).tolist() == wanted
    assert vote(logits, shares).tolist() == wanted
    assert StackingCoefficients.average(shares, 5).tokens(logits).tolist() == wanted


@given(st.integers(0, 10**6))
def test_stacking_begins_as_the_weighted_average(seed: int) -> None:
    logits, shares = random_logits(3, 9, seed), weights(0.5, 0.3, 0.2)
    assert torch.equal(
        StackingCoefficients.average(shares, 5).tokens(logits), weighted_average(logits, shares)
    )


def test_stacking_learns_whom_to_trust() -> None:
    logits = random_logits(2, 600, seed=1)
    targets = logits[1].argmax(-1)
    fitted = StackingCoefficients.fit(logits, targets, EVEN)
    fresh = random_logits(2, 600, seed=2)
    right = (fitted.tokens(fresh) == fresh[1].argmax(-1)).double().mean()
    average = (weighted_average(fresh, EVEN) == fresh[1].argmax(-1)).double().mean()
    assert average < 0.7
    assert right > 0.9


def test_stacking_learns_tokens_that_no_member_gives() -> None:
    """Logits of two members that write 2 if the target is 4, so no average or vote gives 4."""
    logits = random_logits(2, 600, seed=1)
    said = logits[0].argmax(-1)
    fitted = StackingCoefficients.fit(logits, torch.where(said == 2, 4, said), EVEN)
    assert fitted.tokens(saying(2, 2, vocabulary=5)).tolist() == [4]


def test_a_fit_has_no_gradient_and_is_always_the_same() -> None:
    logits, targets = random_logits(2, 50, seed=3), torch.arange(50) % 5
    fitted = StackingCoefficients.fit(logits, targets, EVEN)
    again = StackingCoefficients.fit(logits, targets, EVEN)
    assert torch.equal(fitted.weight, again.weight)
    assert torch.equal(fitted.bias, again.bias)
    # The penalty pulls each number back as hard as the tokens pull it away.
    features = log_probabilities(logits).transpose(0, 1).flatten(1)
    wrong = torch.softmax(features @ fitted.weight.mT + fitted.bias, -1)
    wrong -= torch.nn.functional.one_hot(targets, 5)
    prior = StackingCoefficients.average(EVEN, 5)
    assert torch.allclose(wrong.mT @ features, prior.weight - fitted.weight, atol=1e-4)
    assert torch.allclose(wrong.sum(0), -fitted.bias, atol=1e-4)
