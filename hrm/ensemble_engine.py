"""Several engines that answer as one: every example goes to all, and their answers are combined.

Knows engines and futures; how logits are combined, its caller says.

Each member has an engine and a thread of its own, so an example leaves a member the moment it
halts there. The alternative, one pass over weights stacked with `torch.vmap`, was measured with two
members of the default size. On a CPU core it took 0.94, 1.09 and 1.19 times as long (1, 8 and 32
rows), as vmap has no batching rule for the CPU's attention. On an H100, beside two threads as here,
a step took 12.6 against 17.1 ms, 9.2 against 15.1, 14.3 against 15.3 and 88.3 against 91.4 (1, 8,
64 and 512 rows): with few rows a GPU would gain from it, which is not built. Under `q` one pass
would also compute every member until the last has halted.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor

from hrm.engine import Engine, Prediction
from hrm.network import HRM
from schemas import HaltedBy, HRMExample, SQEHRMError

Combine = Callable[[Tensor], Tensor]
"""The members' logits, float32 (M, S, V), to tokens int64 (S,)."""


class EnsembleEngine:
    """Owns `networks`, one a member, until `close`; a `Predictor` like a single `Engine`.

    Every member runs an example as it would alone, under `halting` and for at most `max_steps`
    (default: each its own configuration's), and its logits at the step at which it halts are
    combined. Of the prediction,

    - `act_steps` and `q_flips` are the most that a member had;
    - `halted_by` is `q` where every member halted by it;
    - `q_halt` and `q_continue` are means over the members by `weights`, which sum to 1.

    An example fails where one member fails it. `slots` is each member's.
    """

    def __init__(
        self,
        networks: Sequence[HRM],
        weights: Sequence[float],
        combine: Combine,
        *,
        slots: int,
        halting: HaltedBy = HaltedBy.MAX_STEPS,
        max_steps: int | None = None,
    ) -> None:
        self.slots = slots
        self.halting = halting
        self.forward_dtype: torch.dtype = networks[0].forward_dtype
        self._weights = tuple(weights)
        self._combine = combine
        self._engines = [
            Engine(network, slots=slots, halting=halting, max_steps=max_steps, keep_logits=True)
            for network in networks
        ]
        self.max_steps = max(engine.max_steps for engine in self._engines)

    @property
    def busy_slots(self) -> int:
        """Slots with an example in them, of the member that has most."""
        return max(engine.busy_slots for engine in self._engines)

    def submit(self, example: HRMExample) -> Future[Prediction]:
        """As `Engine.submit`, for all members: raises what it raises, as does the future."""
        answers: list[Future[Prediction]] = []
        try:
            for engine in self._engines:
                answers.append(engine.submit(example))  # noqa: PERF401 - what is in it is cancelled
        except SQEHRMError:
            _cancel(answers)
            raise
        joined: Future[Prediction] = Future()
        joined.add_done_callback(partial(_cancel_with, answers))
        _when_all_done(answers, partial(self._answer, joined, answers))
        return joined

    def close(self) -> None:
        """Finish the examples in slots, fail those that wait for any member, end the threads."""
        for engine in self._engines:
            engine.close()

    def _answer(self, joined: Future[Prediction], answers: Sequence[Future[Prediction]]) -> None:
        if not joined.set_running_or_notify_cancel():
            return
        try:
            joined.set_result(self._joined([answer.result() for answer in answers]))
        except Exception as error:  # noqa: BLE001 - it belongs to the example
            joined.set_exception(error)

    def _joined(self, members: Sequence[Prediction]) -> Prediction:
        logits = torch.stack([member.logits for member in members if member.logits is not None])
        by_q = all(member.halted_by is HaltedBy.Q for member in members)
        return Prediction(
            tokens=tuple(self._combine(logits).tolist()),
            act_steps=max(member.act_steps for member in members),
            halted_by=HaltedBy.Q if by_q else HaltedBy.MAX_STEPS,
            q_halt=self._mean([member.q_halt for member in members]),
            q_continue=self._mean([member.q_continue for member in members]),
            q_flips=max(member.q_flips for member in members),
        )

    def _mean(self, values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(self._weights, values, strict=True))


def _cancel_with(answers: Sequence[Future[Prediction]], joined: Future[Prediction]) -> None:
    if joined.cancelled():
        _cancel(answers)


def _cancel(answers: Sequence[Future[Prediction]]) -> None:
    for answer in answers:
        answer.cancel()


def _when_all_done(futures: Sequence[Future[Prediction]], act: Callable[[], None]) -> None:
    """Call `act` once, in the thread of the future that is done last."""
    left, lock = len(futures), threading.Lock()

    def note(_: Future[Prediction]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            act()

    for future in futures:
        future.add_done_callback(note)
