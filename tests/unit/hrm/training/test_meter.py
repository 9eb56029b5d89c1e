"""A fixed sample is measured while a run trains, and all messages at its end."""

import torch

from hrm.evaluation.measurement import measure, measure_both_rules
from hrm.model.batch import Messages
from hrm.training.meter import Meter
from schemas import HaltedBy
from tests.support import reference as reference_data

NETWORK = reference_data.network()
ALL = Messages(reference_data.batch(), torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5]))
"""Six messages, two of them of several parts."""


def meter(sample: int, seed: int = 0, held_out: Messages | None = None) -> Meter:
    return Meter(ALL, held_out, sample=sample, seed=seed)


def test_a_sample_is_of_whole_messages() -> None:
    chosen = ALL.select(torch.tensor([4, 0, 2]))
    assert chosen.message.tolist() == [0, 0, 1, 1, 1, 2]
    assert torch.equal(chosen.parts.inputs, ALL.parts.inputs[[0, 1, 3, 4, 5, 7]])
    assert len(chosen) == 3


def test_the_seed_draws_the_same_messages_every_time() -> None:
    drawn = {seed: meter(3, seed).measure(NETWORK, 1) for seed in range(8)}
    assert all(training.q.examples == 3 for training, _ in drawn.values())
    assert all(meter(3, seed).measure(NETWORK, 2) == found for seed, found in drawn.items())
    assert len({training.q.token_accuracy for training, _ in drawn.values()}) > 1


def test_a_smaller_set_is_measured_whole() -> None:
    held_out = Messages.whole(reference_data.batch()[:2])
    whole = measure_both_rules(NETWORK, ALL).totals, measure_both_rules(NETWORK, held_out).totals
    for sample, sampled in ((6, False), (7, False), (5, True)):
        found = meter(sample, held_out=held_out)
        assert found.sampled is sampled
        training, beside = found.measure(NETWORK, 1)
        assert (training == whole[0]) is not sampled
        assert beside == whole[1]


def test_all_messages_are_measured_at_the_end_each_by_itself() -> None:
    found = meter(2, held_out=ALL).measure_all(NETWORK, 1)
    for each in (found.training, found.held_out):
        assert each is not None
        assert each.max_steps.correctness.solved.shape == (6,)
        assert each.totals.max_steps == measure(NETWORK, ALL, HaltedBy.MAX_STEPS)
        assert each.totals.q == measure(NETWORK, ALL, HaltedBy.Q)


def test_the_weights_of_one_step_are_measured_once() -> None:
    found = meter(6)
    found.measure(NETWORK, 1)
    whole = found.measure_all(NETWORK, 1)
    assert found.measure_all(NETWORK, 1) is whole
    assert found.measure_all(NETWORK, 2) is not whole


def test_new_messages_are_half_of_the_sample_if_there_are_as_many() -> None:
    def new_in_sample(sample: int, replayed: int) -> list[bool]:
        found = Meter(ALL, None, sample=sample, seed=1, replayed=replayed)._sample
        new = ALL.select(torch.arange(replayed, 6)).parts.puzzle_ids
        first = [int((found.message == number).nonzero()[0, 0]) for number in range(sample)]
        return [bool(torch.isin(found.parts.puzzle_ids[row], new)) for row in first]

    assert new_in_sample(4, 5) == [False, False, False, True]
    assert new_in_sample(4, 3) == [False, False, True, True]
    assert new_in_sample(4, 1) == [False, True, True, True]
