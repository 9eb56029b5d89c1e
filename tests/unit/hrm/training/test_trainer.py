"""The recipe: the changes of a step, when rows halt, and that the network learns."""

import logging
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hrm.evaluation.measurement import measure, measure_both_rules
from hrm.kernels.compiler import SWITCH
from hrm.model.batch import Batch, Messages
from hrm.model.network import HRM, Levels, State
from hrm.model.reference_loop import evaluate_batch
from hrm.training.trainer import DivergedError, StepReport, Trainer, TrainingConfig, sign_descent_
from schemas import HaltedBy
from tests.support.networks import tiny_network

SEQ_LEN = 8
STILL = 1e-12
"""A learning rate too low to learn anything in a few steps."""


def network_of(**fields: float) -> HRM:
    sizes = {"num_puzzle_identifiers": 9, "halt_max_steps": 3, "halt_exploration_prob": 0.0}
    return tiny_network(**{**sizes, **fields})


def random_examples(count: int, length: int = SEQ_LEN) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randint(12, (2, count, length), generator=generator)
    return Batch(inputs, labels, torch.arange(count))


def trainer_of(network: HRM, count: int = 4, **recipe: float) -> Trainer:
    return Trainer(
        network, random_examples(count), TrainingConfig.model_validate({"steps": 100, **recipe})
    )


def set_q_head(network: HRM, q_halt: float, q_continue: float) -> None:
    """Make the Q head give these logits for every example."""
    assert network.q_head.bias is not None
    with torch.no_grad():
        network.q_head.weight.zero_()
        network.q_head.bias.copy_(torch.tensor([q_halt, q_continue]))


def puzzles(trainer: Trainer) -> list[int]:
    """The puzzle of every row in the last step."""
    ids: list[int] = trainer._carry.batch.puzzle_ids.tolist()
    return ids


# Sign descent.


def test_only_rows_that_occurred_move() -> None:
    table = torch.zeros(5, 2)
    gradient = torch.tensor([[0.001, -700.0], [-2.0, 0.0]])
    sign_descent_(table, torch.tensor([3, 1]), gradient, lr=0.25, weight_decay=0.0)
    assert table.tolist() == [[0, 0], [0.25, 0], [0, 0], [-0.25, 0.25], [0, 0]]


def test_gradients_of_a_repeated_row_are_summed() -> None:
    table = torch.zeros(2, 3)
    gradient = torch.tensor([[3.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [9.0, 9.0, 9.0]])
    sign_descent_(table, torch.tensor([1, 1, 0]), gradient, lr=1.0, weight_decay=0.0)
    assert table.tolist() == [[-1, -1, -1], [-1, 1, 0]]


def test_decay_shrinks_only_the_rows_that_occurred() -> None:
    table = torch.full((3, 1), 8.0)
    sign_descent_(table, torch.tensor([1, 1]), torch.zeros(2, 1), lr=0.5, weight_decay=0.25)
    assert table.flatten().tolist() == [8, 7, 8]


def test_a_table_in_half_precision_keeps_its_dtype() -> None:
    table = torch.ones(2, 2, dtype=torch.bfloat16)
    sign_descent_(table, torch.tensor([0]), torch.ones(1, 2), lr=0.5, weight_decay=0.0)
    assert table.dtype == torch.bfloat16
    assert table.tolist() == [[0.5, 0.5], [1, 1]]


def test_a_step_moves_only_the_rows_of_its_puzzles() -> None:
    network = network_of()
    trainer = trainer_of(network, lr_warmup_steps=0, batch_size=2)
    trainer.step()
    moved = network.puzzle_emb.weights.abs().sum(-1).gt(0)
    assert moved.nonzero().flatten().tolist() == sorted(puzzles(trainer))


# Rows and their examples.


def test_every_example_is_used_before_any_is_used_again() -> None:
    trainer = trainer_of(network_of(halt_max_steps=1), count=6, batch_size=2)
    seen: list[int] = []
    for _ in range(6):
        assert trainer.step().halted == 2
        seen += puzzles(trainer)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_a_row_keeps_its_example_until_it_halts() -> None:
    trainer = trainer_of(network_of(halt_max_steps=3), count=4, batch_size=2, lr=STILL)
    work, halted = [], []
    for _ in range(6):
        halted.append(trainer.step().halted)
        work.append(puzzles(trainer))
    assert halted == [0, 0, 2, 0, 0, 2]
    assert work[0] == work[1] == work[2]
    assert work[3] == work[4] == work[5]
    assert sorted(work[0] + work[3]) == [0, 1, 2, 3]


def test_a_halted_row_starts_from_the_initial_state_and_the_others_continue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of(halt_max_steps=2)
    trainer = trainer_of(network, count=4, batch_size=2, lr=STILL)
    given: list[State] = []
    step = network.step

    def recorded(state: State, x: Tensor, levels: Levels, positions: int | None = None) -> State:
        if torch.is_grad_enabled():
            given.append(state)
        return step(state, x, levels, positions)

    monkeypatch.setattr(network, "step", recorded)
    left: list[State] = []
    for _ in range(3):
        trainer.step()
        left.append(trainer._carry.state)
    initial = network.initial_state(2)
    for first in (given[0], given[2]):
        assert torch.equal(first.z_H, initial.z_H)
        assert torch.equal(first.z_L, initial.z_L)
    assert torch.equal(given[1].z_H, left[0].z_H)
    assert torch.equal(given[1].z_L, left[0].z_L)
    assert not left[0].z_H.requires_grad


def test_a_batch_has_at_most_all_examples() -> None:
    trainer = trainer_of(network_of(halt_max_steps=1), count=3, batch_size=96)
    assert trainer.step().halted == 3
    assert sorted(puzzles(trainer)) == [0, 1, 2]


def test_rows_halt_as_soon_as_q_prefers_it() -> None:
    network = network_of(halt_max_steps=4)
    set_q_head(network, 5, -5)
    trainer = trainer_of(network, lr=STILL)
    reports = [trainer.step() for _ in range(4)]
    assert [(report.halted, report.act_steps) for report in reports] == [(4, 1.0)] * 4


def test_exploration_makes_rows_continue_for_a_random_number_of_steps() -> None:
    network = network_of(halt_max_steps=4, halt_exploration_prob=1.0)
    set_q_head(network, 5, -5)
    trainer = trainer_of(network, lr=STILL)
    lengths: list[int] = []
    for _ in range(40):
        trainer.step()
        lengths += trainer._carry.steps[trainer._carry.halted].tolist()
    assert set(lengths) == {2, 3, 4}


def test_reports_are_means_over_the_rows_that_halted() -> None:
    trainer = trainer_of(network_of(halt_max_steps=2), lr=STILL)
    first, second = trainer.step(), trainer.step()
    assert (first.step, first.halted) == (1, 0)
    assert (first.accuracy, first.solved, first.q_accuracy, first.act_steps) == (None,) * 4
    assert (second.step, second.halted, second.act_steps) == (2, 4, 2.0)
    assert second.accuracy is not None
    assert 0 <= second.accuracy < 1
    assert second.solved == 0
    assert second.q_accuracy == 1


# Targets, rates and averages.


def test_continuing_is_worth_the_next_steps_better_choice_or_halting_at_the_last() -> None:
    network = network_of()
    set_q_head(network, -1.5, 2.5)
    trainer = trainer_of(network)
    x = network.embed(trainer.examples.inputs, network.puzzle_embedding(torch.arange(4)))
    last = torch.tensor([True, False, False, True])
    target = trainer._continue_target(network.initial_state(4), x, last)
    assert not target.requires_grad
    halt, go_on = 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-2.5))
    assert target.tolist() == pytest.approx([halt, go_on, go_on, halt])
    set_q_head(network, 2.5, -1.5)
    assert trainer._continue_target(network.initial_state(4), x, last).tolist() == pytest.approx(
        [go_on] * 4
    )


@pytest.mark.parametrize(
    ("warmup", "shares"),
    [
        (4, [0.25, 0.5, 0.75, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1]),
        (0, [0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19, 0.1]),
        (10, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    ],
)
def test_the_rate_warms_up_and_decays_linearly(warmup: int, shares: list[float]) -> None:
    trainer = trainer_of(network_of(), steps=10, lr=2e-3, lr_warmup_steps=warmup, lr_min_ratio=0.1)
    rates = []
    for _ in shares:
        trainer.step()
        rates.append(trainer._optimizer.param_groups[0]["lr"] / 2e-3)
    assert rates == pytest.approx(shares)


def test_the_averaged_weights_follow_slowly() -> None:
    network = network_of()
    trainer = trainer_of(network, lr=1e-2, lr_warmup_steps=0, ema_decay=0.75)
    weights: list[dict[str, Tensor]] = []
    for _ in range(3):
        trainer.step()
        weights.append({key: value.clone() for key, value in network.state_dict().items()})
    averaged = trainer.averaged_network
    assert averaged is not network
    assert not averaged.training
    assert network.training
    for key, value in averaged.state_dict().items():
        first, second, third = (step[key] for step in weights)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        torch.testing.assert_close(value, expected)
    assert not torch.equal(weights[0]["puzzle_emb.weights"], weights[2]["puzzle_emb.weights"])


def losses(seed: int) -> list[StepReport]:
    trainer = trainer_of(network_of(halt_exploration_prob=0.5), batch_size=2, seed=seed)
    return [trainer.step() for _ in range(6)]


def test_the_same_seed_gives_the_same_run() -> None:
    first, second, other = losses(3), losses(3), losses(4)
    assert [report.loss for report in first] == [report.loss for report in second]
    assert [report.loss for report in first] != [report.loss for report in other]


# Precision, divergence, and resuming.


def test_measurements_are_float32_whatever_the_dtype_of_training() -> None:
    torch.manual_seed(0)
    config = network_of().config
    trainer = trainer_of(HRM(config, torch.bfloat16))
    trainer.step()
    assert trainer._carry.state.z_H.dtype == torch.bfloat16
    averaged = trainer.averaged_network
    assert averaged.forward_dtype == torch.float32
    loaded = HRM(config).eval()
    loaded.load_state_dict(averaged.state_dict())
    for halting in HaltedBy:
        assert measure(averaged, Messages.whole(trainer.examples), halting) == measure(
            loaded, Messages.whole(trainer.examples), halting
        )


@pytest.mark.parametrize("where", ["lm_head.weight", "H_init"])
def test_divergence_is_reported_and_leaves_the_weights_intact(where: str) -> None:
    network = network_of()
    trainer = trainer_of(network, lr=0.25)
    trainer.step()
    before = {key: value.clone() for key, value in trainer.averaged_network.state_dict().items()}
    network.state_dict()[where].fill_(math.nan)
    trainer._carry.halted.fill_(True)
    with pytest.raises(DivergedError, match=r"^diverged at step 2 .*: lower lr \(0\.25\)"):
        trainer.step()
    assert trainer.step_count == 1
    for key, value in trainer.averaged_network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 32}], ids=["plain", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_trainer_continues_to_the_last_bit(
    dtype: torch.dtype, sizes: dict[str, int]
) -> None:
    # Rows explore, the order is drawn again, and examples are interrupted halfway.
    config = network_of(halt_exploration_prob=0.5, **sizes).config
    recipe = {"batch_size": 3, "lr": 1e-2, "lr_warmup_steps": 4, "seed": 7}

    def start(seed: int) -> Trainer:
        torch.manual_seed(seed)
        return trainer_of(HRM(config, dtype), count=5, **recipe)

    unbroken = start(0)
    for _ in range(7):
        unbroken.step()
    state = {key: value.clone() for key, value in unbroken.state_dict().items()}
    averaged = {k: v.clone() for k, v in unbroken.averaged_network.state_dict().items()}
    restored = start(1)
    restored.load_state_dict(state, averaged)
    assert restored.step_count == 7
    assert [restored.step() for _ in range(7)] == [unbroken.step() for _ in range(7)]
    for key, value in unbroken.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value), key
    for key, value in unbroken.averaged_network.state_dict().items():
        assert torch.equal(restored.averaged_network.state_dict()[key], value), key


# Fast levels.

HEAD_16 = {"hidden_size": 32, "num_heads": 2, "puzzle_emb_ndim": 32, "halt_exploration_prob": 0.5}
"""Sizes for which there is C++."""


def run_of(dtype: torch.dtype, steps: int) -> tuple[list[float], Trainer]:
    """Losses of some steps, which change the weights by much."""
    trainer = trainer_of(HRM(network_of(**HEAD_16).config, dtype), lr=1e-2, lr_warmup_steps=0)
    return [trainer.step().loss for _ in range(steps)], trainer


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[float], Trainer]]:
    def plain(dtype: torch.dtype, steps: int) -> tuple[list[float], Trainer]:
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setenv(SWITCH, "off")
            found, trainer = run_of(dtype, steps)
        assert trainer._levels.form == f"plain torch, because {SWITCH} is off"
        return found, trainer

    return plain


def fast_steps(dtype: torch.dtype, steps: int) -> tuple[list[float], Trainer]:
    torch.manual_seed(0)
    found, trainer = run_of(dtype, steps)
    if not trainer._levels.form.startswith("C++"):
        pytest.skip(trainer._levels.form)
    return found, trainer


def test_fast_steps_have_the_losses_of_plain_ones(
    plain_steps: Callable[..., tuple[list[float], Trainer]],
) -> None:
    fast, trainer = fast_steps(torch.float32, 5)
    plain, reference = plain_steps(torch.float32, 5)
    assert fast == pytest.approx(plain, abs=1e-5)
    assert max(plain) - min(plain) > 0.05
    for key, value in trainer.network.state_dict().items():
        torch.testing.assert_close(value, reference.network.state_dict()[key], rtol=0, atol=1e-3)


def test_in_bfloat16_the_first_loss_is_the_same_within_rounding(
    plain_steps: Callable[..., tuple[list[float], Trainer]],
) -> None:
    fast, plain = fast_steps(torch.bfloat16, 3)[0], plain_steps(torch.bfloat16, 3)[0]
    assert fast[0] == pytest.approx(plain[0], rel=2e-3)
    assert fast == pytest.approx(plain, rel=2e-2)


def test_the_form_of_the_levels_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hrm.training.trainer")
    trainer = trainer_of(network_of())
    trainer.averaged_levels()
    assert caplog.messages == [
        "training kernels: plain torch, because there is no C++ for heads of 8"
    ]
    trainer = trainer_of(network_of(**HEAD_16))
    assert caplog.messages[1:] == [f"training kernels: {trainer._levels.form}"]


def test_the_averaged_weights_are_measured_by_fast_levels_with_the_same_figures() -> None:
    _, trainer = fast_steps(torch.bfloat16, 1)
    for _ in range(2):
        trainer.step()
        levels, averaged = trainer.averaged_levels(), trainer.averaged_network
        assert levels != averaged.levels
        batch = trainer.examples
        plain, fast = (
            evaluate_batch(averaged, batch, halting=HaltedBy.MAX_STEPS, levels=each)
            for each in (None, levels)
        )
        torch.testing.assert_close(fast.q_logits, plain.q_logits, rtol=0, atol=1e-5)
        assert torch.equal(fast.predictions, plain.predictions)
        messages = Messages.whole(batch)
        figures = measure_both_rules(averaged, messages, levels=levels)
        assert figures.totals == measure_both_rules(averaged, messages).totals


@pytest.mark.parametrize("restored", [False, True])
def test_the_fast_levels_have_the_weights_of_the_last_step(*, restored: bool) -> None:
    _, trainer = fast_steps(torch.float32, 2)
    if restored:
        state = {key: value.clone() for key, value in trainer.state_dict().items()}
        averaged = trainer.averaged_network.state_dict()
        _, trainer = fast_steps(torch.float32, 1)
        trainer.load_state_dict(state, averaged)
    network = trainer.network
    x = network.embed(trainer.examples.inputs, network.puzzle_embedding(torch.arange(4)))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            for fast, plain in zip(trainer._levels.levels, network.levels, strict=True):
                expected = plain(z, x, network.rotary)
                torch.testing.assert_close(fast(z, x, network.rotary), expected, rtol=0, atol=1e-5)


# Learning.


def test_a_tiny_network_learns_four_examples() -> None:
    network = tiny_network(
        hidden_size=32, seq_len=24, expansion=2.0, halt_max_steps=4, halt_exploration_prob=0.5
    )
    examples = random_examples(4, 24)
    recipe = TrainingConfig(steps=300, lr=3e-3, lr_warmup_steps=10, ema_decay=0.9)
    trainer = Trainer(network, examples, recipe)
    reports = [trainer.step() for _ in range(recipe.steps)]
    for halting in HaltedBy:
        assert measure(trainer.averaged_network, Messages.whole(examples), halting).solved == 4
    assert [later.step - earlier.step for earlier, later in pairwise(reports)] == [1] * 299
    assert sum(report.loss for report in reports[-20:]) < 0.5 * sum(
        report.loss for report in reports[:20]
    )


# What is drawn.


def test_a_new_message_is_drawn_as_often_as_asked_for_each_replayed_one() -> None:
    recipe = TrainingConfig(new_draws=3)
    trainer = Trainer(network_of(), random_examples(5), recipe, replayed=3)
    drawn = trainer._next_examples(9 * 4).puzzle_ids
    assert drawn.bincount().tolist() == [4, 4, 4, 12, 12]
    assert drawn[:9].bincount().tolist() == [1, 1, 1, 3, 3]


def test_all_messages_are_drawn_alike_if_none_is_replayed() -> None:
    trainer = Trainer(network_of(), random_examples(5), TrainingConfig(new_draws=3))
    assert trainer._next_examples(10).puzzle_ids.bincount().tolist() == [2] * 5


def test_puzzle_rows_of_replayed_messages_move_less() -> None:
    def moved(replayed: int) -> list[float]:
        network = network_of()
        before = network.puzzle_emb.weights.clone()
        still = {"lr": STILL, "lr_warmup_steps": 0, "puzzle_emb_weight_decay": 0.0}
        recipe = TrainingConfig(**still, replayed_emb_lr=0.25, new_draws=1, steps=9)
        trainer = Trainer(network, random_examples(4), recipe, replayed=replayed)
        trainer.step()
        distances = (network.puzzle_emb.weights - before).abs().amax(-1)
        return [round(float(each) / 0.01 / (8 / 9), 4) for each in distances[:4]]

    assert moved(3) == [0.25, 0.25, 0.25, 1.0]
    assert moved(0) == [1.0] * 4


def test_full_rows_run_every_step_and_not_all_at_the_same() -> None:
    network = network_of(halt_max_steps=4)
    assert network.q_head.bias is not None
    with torch.no_grad():
        network.q_head.bias.copy_(torch.tensor([9.0, -9.0]))  # it would halt at once
    trainer = trainer_of(network, full_share=0.5, lr=STILL, puzzle_emb_lr=0.0, lr_warmup_steps=0)
    done = []
    for _ in range(6):
        trainer.step()
        done.append(trainer._carry.steps.tolist())
    assert done == [
        [1, 3, 1, 1],
        [2, 4, 1, 1],
        [3, 1, 1, 1],
        [4, 2, 1, 1],
        [1, 3, 1, 1],
        [2, 4, 1, 1],
    ]
