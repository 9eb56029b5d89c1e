"""Answers examples with one network on one device: slots, futures and one thread.

Knows tensors and the order of work; nothing of messages or verdicts.

`submit` puts an example into a queue and returns a future at once. A thread owns the network. It
keeps up to `slots` examples in work, each at an ACT step of its own, and repeats three moves: give
free slots to waiting examples; run one ACT step over all occupied slots; answer those that have
halted, which frees their slots. So nobody waits for a batch to form or to finish. An example's
input embedding is computed once, when it takes its slot. Only occupied slots are computed: their
rows are kept together, so the batch of a step is as large as the number of examples in work.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hrm.batch import check_fits, encode
from hrm.network import HRM, State
from schemas import HaltedBy, HRMExample, SQEHRMError


class EngineClosedError(SQEHRMError):
    """The engine is shutting down: the example has to be sent to another."""


class InferenceError(SQEHRMError):
    """The network gave no finite answer for this example."""


@dataclass(frozen=True)
class Prediction:
    """What the network said of one example at the step at which it halted."""

    tokens: tuple[int, ...]
    """At every position of the sequence length, whatever the target's length."""
    act_steps: int
    halted_by: HaltedBy
    q_halt: float
    q_continue: float
    q_flips: int
    """How often the sign of q_halt - q_continue changed."""
    logits: Tensor | None = field(default=None, compare=False, repr=False)
    """Of the token head: float32 (S, V) on the CPU, from an engine that keeps them."""


class Predictor(Protocol):
    """What answers examples: an engine, or several as one."""

    @property
    def slots(self) -> int: ...  # noqa: D102
    @property
    def busy_slots(self) -> int: ...  # noqa: D102
    @property
    def halting(self) -> HaltedBy: ...  # noqa: D102
    @property
    def max_steps(self) -> int: ...  # noqa: D102
    @property
    def forward_dtype(self) -> torch.dtype: ...  # noqa: D102
    def submit(self, example: HRMExample) -> Future[Prediction]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass
class _Work:
    """An example on its way through the engine."""

    example: HRMExample
    future: Future[Prediction]
    act_steps: int = 0
    q_flips: int = 0
    prefers_halt: bool | None = field(default=None)


@dataclass
class _Rows:
    """The tensors of the examples in work; row i belongs to the i-th of them."""

    x: Tensor
    """(n, P + S, D): input embeddings."""
    state: State

    def select(self, rows: Sequence[int]) -> "_Rows":
        """Only these rows."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.x.device)
        return _Rows(self.x[index], State(self.state.z_H[index], self.state.z_L[index]))

    def join(self, other: "_Rows") -> "_Rows":
        """The rows of both."""
        state = State(
            torch.cat((self.state.z_H, other.state.z_H)),
            torch.cat((self.state.z_L, other.state.z_L)),
        )
        return _Rows(torch.cat((self.x, other.x)), state)


class Engine:
    """Owns `network`, which must be in evaluation mode, until `close`.

    `slots`: examples in work at once. `halting`: `max_steps` runs every example for `max_steps`
    ACT steps (default: the configuration's `halt_max_steps`), as the reference's evaluation does;
    `q` ends an example at the first step at which `q_halt > q_continue`, at the latest there.
    `keep_logits`: predictions carry them, for whoever combines the answers of several networks.
    """

    def __init__(
        self,
        network: HRM,
        *,
        slots: int,
        halting: HaltedBy = HaltedBy.MAX_STEPS,
        max_steps: int | None = None,
        keep_logits: bool = False,
    ) -> None:
        self.network = network
        self.slots = slots
        self.halting = halting
        self.max_steps = max_steps or network.config.halt_max_steps
        self._keep_logits = keep_logits
        self._waiting: deque[_Work] = deque()
        self._active: list[_Work] = []
        self._rows: _Rows | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="hrm-engine", daemon=True)
        self._thread.start()

    @property
    def busy_slots(self) -> int:
        """Slots with an example in them."""
        return len(self._active)

    @property
    def forward_dtype(self) -> torch.dtype:
        """Of activations."""
        return self.network.forward_dtype

    def submit(self, example: HRMExample) -> Future[Prediction]:
        """Queue `example`; the future gives its prediction. Never waits for the network.

        Raises `ExampleError` for what the network cannot take and `EngineClosedError` after
        `close`. The future raises `InferenceError` where the network's answer is not finite, and
        `EngineClosedError` where the engine closed before the example took a slot. A future that
        is cancelled before it took a slot costs nothing.
        """
        check_fits(example, self.network.config)
        work = _Work(example, Future())
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            self._waiting.append(work)
            self._changed.notify()
        return work.future

    def close(self) -> None:
        """Finish the examples in slots, fail those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._take():
            try:
                self._admit()
                self._answer(self._step())
            except Exception as error:  # noqa: BLE001 - it belongs to the examples in work
                self._fail_active(error)

    def _take(self) -> bool:
        """Give free slots to waiting examples; wait while there is no work. False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._active or self._waiting or self._closed)
            if self._closed:
                while self._waiting:
                    _fail(self._waiting.popleft(), EngineClosedError("the engine is closed"))
            while self._waiting and len(self._active) < self.slots:
                work = self._waiting.popleft()
                if work.future.set_running_or_notify_cancel():
                    self._active.append(work)
            return bool(self._active) or not self._closed

    def _admit(self) -> None:
        """Make the rows of the examples that have just taken a slot: the last ones."""
        fresh = self._active[0 if self._rows is None else len(self._rows.x) :]
        if not fresh:
            return
        batch = encode([work.example for work in fresh], self.network.config)
        batch = batch.to(self.network.H_init.device)
        x = self.network.embed(batch.inputs, self.network.puzzle_embedding(batch.puzzle_ids))
        rows = _Rows(x, self.network.initial_state(len(fresh)))
        self._rows = rows if self._rows is None else self._rows.join(rows)

    def _step(self) -> list[list[float]]:
        """One ACT step over all rows; each row's q_halt and q_continue."""
        if self._rows is None:  # all that were taken had been cancelled
            return []
        self._rows.state = self.network.step(self._rows.state, self._rows.x)
        q_logits: list[list[float]] = self.network.q_logits(self._rows.state.z_H).tolist()
        return q_logits

    def _answer(self, q_logits: list[list[float]]) -> None:
        """Answer the examples that halt at this step and free their slots."""
        halting: list[int] = []
        for row, (work, (q_halt, q_continue)) in enumerate(
            zip(self._active, q_logits, strict=True)
        ):
            work.act_steps += 1
            prefers_halt = q_halt > q_continue
            work.q_flips += work.prefers_halt is not None and prefers_halt != work.prefers_halt
            work.prefers_halt = prefers_halt
            if work.act_steps >= self.max_steps or (self.halting is HaltedBy.Q and prefers_halt):
                halting.append(row)
        if not halting or self._rows is None:
            return
        logits = self.network.token_logits(self._rows.select(halting).state.z_H)
        finite = logits.isfinite().all((1, 2)).tolist()
        tokens = logits.argmax(-1).tolist()
        kept = logits.float().cpu() if self._keep_logits else [None] * len(halting)
        done = [self._active[row] for row in halting]
        halted = set(halting)
        self._keep([row for row in range(len(self._active)) if row not in halted])
        for work, row, predicted, is_finite, scores in zip(
            done, halting, tokens, finite, kept, strict=True
        ):
            if is_finite and all(map(math.isfinite, q_logits[row])):
                work.future.set_result(self._prediction(work, predicted, scores, q_logits[row]))
            else:
                _fail(work, InferenceError("the network's answer is not finite for this example"))

    def _prediction(
        self, work: _Work, tokens: list[int], logits: Tensor | None, q_logits: list[float]
    ) -> Prediction:
        q_halt, q_continue = q_logits
        by_q = self.halting is HaltedBy.Q and q_halt > q_continue
        return Prediction(
            tokens=tuple(tokens),
            act_steps=work.act_steps,
            halted_by=HaltedBy.Q if by_q else HaltedBy.MAX_STEPS,
            q_halt=q_halt,
            q_continue=q_continue,
            q_flips=work.q_flips,
            logits=logits,
        )

    def _keep(self, rows: list[int]) -> None:
        """Free the slots of all other rows."""
        with self._changed:
            self._active = [self._active[row] for row in rows]
        self._rows = self._rows.select(rows) if rows and self._rows is not None else None

    def _fail_active(self, error: Exception) -> None:
        failed = self._active
        self._keep([])
        for work in failed:
            _fail(work, error)


def _fail(work: _Work, error: Exception) -> None:
    if work.future.running() or work.future.set_running_or_notify_cancel():
        work.future.set_exception(error)
