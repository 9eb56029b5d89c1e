"""Several networks answer as one: each runs as it does alone, and an error fails one example."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch

from hrm.checkpoint import Checkpoint
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble
from hrm.ensemble.join import join_by
from hrm.inference.engine import Engine
from hrm.inference.prediction import EngineClosedError, InferenceError, Prediction, Predictor
from hrm.model.batch import ExampleError
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support.engines import DEADLINE, Gate, wait_until
from tests.support.ensembles import WIDER, member
from tests.support.examples import example

EXAMPLES = [example(puzzle, (0, word, 11)) for puzzle in range(5) for word in (3, 7)]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Two members of one shape, and one of another shape that was trained for fewer steps."""
    folder = tmp_path_factory.mktemp("members")
    return [
        member(folder / "a", 1),
        member(folder / "b", 2),
        member(folder / "c", 3, WIDER),
    ]


@contextlib.contextmanager
def engine_of(
    ensemble: Ensemble,
    networks: list[HRM] | None = None,
    *,
    slots: int = 3,
    halting: HaltedBy = HaltedBy.MAX_STEPS,
    max_steps: int | None = None,
) -> Iterator[Engine]:
    engine = Engine(
        networks or [member.build() for member in ensemble.members],
        slots=slots,
        halting=halting,
        max_steps=max_steps,
        keep_logits=True,
        join=join_by(ensemble.weights, ensemble.combine),
    )
    with contextlib.closing(engine):
        yield engine


def predictions(engine: Predictor, examples: list[HRMExample]) -> list[Prediction]:
    futures = [engine.submit(each) for each in examples]
    return [future.result(DEADLINE) for future in futures]


def alone(
    checkpoint: Checkpoint, halting: HaltedBy, max_steps: int | None = None
) -> list[Prediction]:
    engine = Engine(
        checkpoint.build(), slots=1, halting=halting, max_steps=max_steps, keep_logits=True
    )
    with contextlib.closing(engine):
        return predictions(engine, EXAMPLES)


@pytest.mark.parametrize("strategy", [Strategy.WEIGHTED_AVERAGE, Strategy.VOTING])
@pytest.mark.parametrize("halting", HaltedBy)
def test_answers_are_the_members_own_combined(
    members: list[Checkpoint], halting: HaltedBy, strategy: Strategy
) -> None:
    ensemble = Ensemble(members, strategy, [3, 2, 1])
    separate = [alone(each, halting, 5) for each in members]
    with engine_of(ensemble, halting=halting, max_steps=5) as engine:
        together = predictions(engine, EXAMPLES)
    for given, *own in zip(together, *separate, strict=True):
        logits = torch.stack([each.logits for each in own if each.logits is not None])
        assert given.tokens == tuple(ensemble.combine(logits).tolist())
        assert given.act_steps == max(each.act_steps for each in own)
        assert given.q_flips == max(each.q_flips for each in own)
        all_by_q = all(each.halted_by is HaltedBy.Q for each in own)
        assert given.halted_by is (HaltedBy.Q if all_by_q else HaltedBy.MAX_STEPS)
        halts, continues = ([each.q_halt for each in own], [each.q_continue for each in own])
        mean = [
            sum(w * q for w, q in zip((3, 2, 1), each, strict=True)) for each in (halts, continues)
        ]
        assert given.q_halt == pytest.approx(mean[0] / 6, abs=1e-4)
        assert given.q_continue == pytest.approx(mean[1] / 6, abs=1e-4)
    if halting is HaltedBy.Q:
        steps = {tuple(each.act_steps for each in own) for own in zip(*separate, strict=True)}
        assert any(len(set(each)) > 1 for each in steps), "members halt at steps of their own"


def test_only_an_engine_that_is_asked_to_keeps_logits(members: list[Checkpoint]) -> None:
    engine = Engine(members[0].build(), slots=1)
    with contextlib.closing(engine):
        (prediction,) = predictions(engine, EXAMPLES[:1])
    assert prediction.logits is None
    kept = alone(members[0], HaltedBy.MAX_STEPS)[0]
    assert kept == prediction
    assert kept.logits is not None
    assert tuple(kept.logits.argmax(-1).tolist()) == prediction.tokens


def test_every_member_runs_the_steps_it_was_trained_for(members: list[Checkpoint]) -> None:
    with engine_of(Ensemble(members)) as engine:
        assert (engine.max_steps, engine.statistics.slots) == (16, 3)
        assert predictions(engine, EXAMPLES[:1])[0].act_steps == 16
    with engine_of(Ensemble(members), max_steps=2) as engine:
        assert engine.max_steps == 2
        assert predictions(engine, EXAMPLES[:1])[0].act_steps == 2


def test_an_example_that_one_member_cannot_answer_fails_alone(members: list[Checkpoint]) -> None:
    ensemble = Ensemble(members)
    with engine_of(ensemble, max_steps=2) as engine:
        sound = predictions(engine, EXAMPLES)
    networks = [each.build() for each in members]
    with torch.no_grad():
        networks[1].puzzle_emb.weights[EXAMPLES[0].puzzle_id] = torch.nan
    with engine_of(ensemble, networks, max_steps=2) as engine:
        futures = [engine.submit(each) for each in EXAMPLES]
        for row, (future, wanted) in enumerate(zip(futures, sound, strict=True)):
            if EXAMPLES[row].puzzle_id == EXAMPLES[0].puzzle_id:
                with pytest.raises(InferenceError, match="not finite"):
                    future.result(DEADLINE)
            else:
                assert future.result(DEADLINE).tokens == wanted.tokens


def test_an_error_of_the_combiner_belongs_to_the_example(members: list[Checkpoint]) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    engine = Engine(
        members[0].build(), slots=1, max_steps=1, keep_logits=True, join=join_by([1.0], broken)
    )
    with contextlib.closing(engine), pytest.raises(RuntimeError, match="no"):
        engine.submit(EXAMPLES[0]).result(DEADLINE)


def test_what_one_member_cannot_take_is_refused_and_waits_for_no_other(
    members: list[Checkpoint],
) -> None:
    held = Gate(members[0].build())
    small = HRM(members[1].config.model_copy(update={"num_puzzle_identifiers": 1})).eval()
    networks = [held.network, small]
    with engine_of(Ensemble(members[:2]), networks, slots=1, max_steps=1) as engine:
        first = engine.submit(example(0, (0, 11)))
        assert held.reached.wait(DEADLINE)
        with pytest.raises(ExampleError, match="puzzle_id 4"):
            engine.submit(example(4, (0, 11)))
        assert engine.statistics.waiting == 0
        held.opened.set()
        first.result(DEADLINE)


def test_closing_finishes_what_is_in_slots_and_fails_what_waits(members: list[Checkpoint]) -> None:
    held = [Gate(each.build()) for each in members]
    networks = [each.network for each in held]
    with engine_of(Ensemble(members), networks, slots=1, max_steps=1) as engine:
        active, waiting = engine.submit(EXAMPLES[0]), engine.submit(EXAMPLES[1])
        assert held[0].reached.wait(DEADLINE)
        assert engine.statistics.busy_slots == 1
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_until(lambda: engine._closed)
        for each in held:
            each.opened.set()
        closing.join(DEADLINE)
        assert active.result(0).act_steps == 1
        with pytest.raises(EngineClosedError):
            waiting.result(0)
        with pytest.raises(EngineClosedError):
            engine.submit(EXAMPLES[0])
        assert engine.statistics.busy_slots == 0


def test_a_cancelled_example_is_cancelled_at_every_member(members: list[Checkpoint]) -> None:
    held = [Gate(each.build()) for each in members]
    networks = [each.network for each in held]
    answered: list[Future[Prediction]] = []
    with engine_of(Ensemble(members), networks, slots=1, max_steps=1) as engine:
        active, waiting = engine.submit(EXAMPLES[0]), engine.submit(EXAMPLES[1])
        waiting.add_done_callback(answered.append)
        assert held[0].reached.wait(DEADLINE)
        assert waiting.cancel()
        for each in held:
            each.opened.set()
        last = engine.submit(EXAMPLES[2])
        assert last.result(DEADLINE).act_steps == active.result(DEADLINE).act_steps == 1
        assert waiting.cancelled()
        assert answered == [waiting]
