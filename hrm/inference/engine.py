"""Answers examples with one network or several on one device: a queue, slots and one thread.

Knows the order of work and futures; tensors are `hrm.inference.lane`'s, and nothing here knows
messages.

The scheduler, for a newcomer. `submit` puts an example into a bounded queue and returns a future at
once. A thread owns the networks and takes turns. In a turn it gives free slots to examples from the
front of the queue, runs one ACT step over all examples in slots, each at an ACT step of its own,
and answers those that have halted, which frees their slots for the next turn. So nobody waits for a
batch to form or to finish, and a step computes only the slots that are taken: each network keeps
its examples in the first rows of fixed memory (a lane), which threads of a CPU share, while a GPU
replays a step that was captured for the nearest of a few sizes. There the host prepares and
delivers while the device computes, and waits for it once a turn, for two numbers of each example:
whether to halt.

A CPU's step takes as long as it has rows, so that examples which meet slow each other. While slots
are free, a turn there is only for one of them, or for as many as there are threads where these are
more than two. Under `q` it is for those with the fewest steps done: most examples halt after one
or two, a few after many, and nobody knows before (least attained service first, Kleinrock, 1976).
Else it is for those with the fewest steps left. When all slots are taken, a turn is for all of
them: none starves, and slots become free.

Several networks are an ensemble: an example takes one slot, leaves each network when it halts
there, and frees the slot when the last is done. Where the device's memory does not suffice, the
examples in slots go back to the front of the queue, and the engine goes on with half the slots.
"""

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import torch

from hrm.inference.lane import Answers, is_out_of_memory
from hrm.inference.lanes import Lanes
from hrm.inference.prediction import (
    EngineClosedError,
    EngineFullError,
    EngineStatistics,
    InferenceError,
    Prediction,
)
from hrm.inference.threads import end_openmp_threads
from hrm.model.batch import check_fits
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample

MIN_QUEUE_LIMIT = 1024
"""Examples that may wait, or twice the slots where these are many: all slots can free at once."""

THREADS_PER_EXAMPLE = 2
"""So many of a CPU take 3.0 ms for a step of one example, of which one takes 5.0: hardly more than
for a share of two examples, and the first is through sooner. More were not measured."""

Join = Callable[[Sequence[Prediction]], Prediction]
"""The predictions of several networks, in their order, to one."""


@dataclass(eq=False)
class _Ticket:
    """An example on its way through the engine."""

    example: HRMExample
    max_steps: int | None
    future: Future[Prediction] = field(default_factory=Future)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    """By network."""
    halted: int = 0
    """At how many networks."""
    steps: int = 0
    """ACT steps that were computed for it."""
    settled: bool = False

    def settle(self, outcome: Prediction | Exception) -> None:
        """Tell whoever waits. Only the first outcome counts."""
        if self.settled:
            return
        self.settled = True
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Engine:
    """Owns `network`, or several as one, which must be in evaluation mode, until `close`.

    `slots`: examples in work at once. `halting`: `max_steps` runs every example for `max_steps`
    ACT steps (default: the configuration's `halt_max_steps`), as the reference's evaluation does;
    `q` ends an example at the first step at which `q_halt > q_continue`, at the latest there.
    `queue_limit`: examples that may wait for a slot (default: 1024, and at least twice the slots).
    `keep_logits`: predictions carry them.
    `join`: how the predictions of several networks become one. `threads`: of the CPU (default: as
    many as torch uses).

    Raises `DeviceMemoryError` where not even one slot finds room.
    """

    def __init__(
        self,
        network: HRM | Sequence[HRM],
        *,
        slots: int,
        halting: HaltedBy = HaltedBy.MAX_STEPS,
        max_steps: int | None = None,
        queue_limit: int | None = None,
        keep_logits: bool = False,
        join: Join | None = None,
        threads: int | None = None,
    ) -> None:
        self.networks = (network,) if isinstance(network, HRM) else tuple(network)
        self.halting = halting
        self.queue_limit = queue_limit or max(MIN_QUEUE_LIMIT, 2 * slots)
        self._limits = [max_steps or each.config.halt_max_steps for each in self.networks]
        self._join = join
        self._steps = self._occupied = self._refills = 0
        self._waiting: deque[_Ticket] = deque()
        self._fresh: list[_Ticket] = []
        """In slots, but in no lane yet."""
        self._active: dict[_Ticket, None] = {}
        """In slots, the oldest first."""
        self._answers: list[tuple[int, Answers[_Ticket]]] = []
        """What halted, by network, and was not delivered yet."""
        self._cancelled: deque[Future[Prediction]] = deque()
        """Since the last turn."""
        self._closed = False
        self._changed = threading.Condition()
        self._lanes: Lanes[_Ticket] = Lanes(
            self.networks,
            slots,
            halting=halting,
            keep_logits=keep_logits,
            threads=threads or torch.get_num_threads(),
        )
        end_openmp_threads()  # that it took to load the network: they would slow the engine's
        self._thread = threading.Thread(target=self._run, name="hrm-engine", daemon=True)
        self._thread.start()

    @property
    def max_steps(self) -> int:
        """ACT steps an example gets at most, unless it is submitted with a limit of its own."""
        return max(self._limits)

    @property
    def forward_dtype(self) -> torch.dtype:
        """Of activations."""
        return self.networks[0].forward_dtype

    @property
    def statistics(self) -> EngineStatistics:
        """A snapshot, all of one moment."""
        with self._changed:
            return EngineStatistics(
                slots=self._lanes.slots,
                busy_slots=len(self._active),
                waiting=len(self._waiting),
                steps=self._steps,
                occupied=self._occupied,
                refills=self._refills,
                slot_reductions=self._lanes.reductions,
            )

    def submit(self, example: HRMExample, *, max_steps: int | None = None) -> Future[Prediction]:
        """Queue `example`; the future gives its prediction. Never waits.

        `max_steps`: its own limit of ACT steps. Raises `ExampleError` for what a network cannot
        take, `EngineFullError` where `queue_limit` examples wait, and `EngineClosedError` after
        `close`. The future raises `InferenceError` where a network's answer is not finite, and
        `EngineClosedError` where the engine closed before the example took a slot. Cancelling the
        future frees its slot, or its place among those that wait, at the next turn.
        """
        for network in self.networks:
            check_fits(example, network.config)
        ticket = _Ticket(example, max_steps)
        # Not the engine itself, which a future may outlive.
        ticket.future.add_done_callback(partial(_note_if_cancelled, self._cancelled))
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            if len(self._waiting) >= self.queue_limit:
                raise EngineFullError(
                    f"{self.queue_limit} examples wait already: submit again when one is answered"
                )
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket.future

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Wait until the queue has room or the engine closes; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or len(self._waiting) < self.queue_limit, timeout
            )

    def close(self) -> None:
        """Finish the examples in slots, fail those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # a future's callback may close
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._take():
                self._turn()
        finally:  # whatever ended it, no future stays without an answer
            with self._changed:
                self._closed = True
                left = [*self._in_work(), *self._waiting]
                self._waiting.clear()
                self._changed.notify_all()
            self._clear()
            self._lanes.close()
            _settle(left, EngineClosedError("the engine ended"))

    def _take(self) -> bool:
        """Give free slots to waiting examples; wait while there is no work. False at the end."""
        refused: list[_Ticket] = []
        with self._changed:
            self._changed.wait_for(
                lambda: self._active or self._answers or self._waiting or self._closed
            )
            cancelled = self._drop_cancelled()
            if self._closed:
                refused = list(self._waiting)
                self._waiting.clear()
            at_work = bool(self._active)
            while self._waiting and len(self._active) < self._lanes.slots:
                ticket = self._waiting.popleft()
                self._active[ticket] = None
                self._fresh.append(ticket)
                self._refills += at_work
            self._changed.notify_all()
            goes_on = bool(self._active or self._answers) or not self._closed
        self._lanes.remove(cancelled)
        _settle([*cancelled, *refused], EngineClosedError("the engine is closed"))
        return goes_on

    def _drop_cancelled(self) -> set[_Ticket]:
        """Take what was cancelled since the last turn out of slots and queue, and return it."""
        futures = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if not futures:
            return set()
        dropped = {ticket for ticket in (*self._active, *self._waiting) if ticket.future in futures}
        self._active = {ticket: None for ticket in self._active if ticket not in dropped}
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in dropped)
        return dropped

    def _turn(self) -> None:
        error: Exception | None = None
        try:
            self._step()
        except Exception as raised:  # noqa: BLE001 - it belongs to the examples in work
            error = raised
        if error is None:
            return
        tickets = self._in_work()
        if is_out_of_memory(error) and self._lanes.slots > 1:
            error = None  # with its traceback, whose frames hold memory of the device
            self._go_on_with_fewer_slots(tickets)
        else:
            self._clear()
            _settle(tickets, error)

    def _step(self) -> None:
        """One ACT step over all examples in slots, and the answers of those that halt."""
        fresh, self._fresh = self._fresh, []
        if fresh:
            self._lanes.admit(
                fresh,
                [ticket.example for ticket in fresh],
                [[ticket.max_steps or limit for ticket in fresh] for limit in self._limits],
            )
        chosen = self._chosen()
        self._lanes.launch(chosen)
        computed = self._active if chosen is None else chosen
        with self._changed:
            self._steps += bool(computed)
            self._occupied += len(computed)
        for ticket in computed:
            ticket.steps += 1
        self._deliver()  # what halted at the step before, while the device computes this one
        for number, answers in self._lanes.finish():
            self._answers.append((number, answers))
            with self._changed:
                for ticket in answers.occupants:
                    ticket.halted += 1
                    if ticket.halted == len(self.networks):
                        del self._active[ticket]
        if not self._lanes.is_asynchronous:
            self._deliver()

    def _chosen(self) -> Sequence[_Ticket] | None:
        """The examples that this turn is for, the oldest first among equals; None: all in slots."""
        if len(self._active) == self._lanes.slots or not self._lanes.needs_threads:
            return None
        threads = self._lanes.threads
        count = threads if threads > THREADS_PER_EXAMPLE else 1
        return heapq.nsmallest(count, self._active, key=self._rank)

    def _rank(self, ticket: _Ticket) -> int:
        """The lowest is for the next turn: see the module's docstring."""
        if self.halting is HaltedBy.Q:
            return ticket.steps
        return (ticket.max_steps or self.max_steps) - ticket.steps

    def _deliver(self) -> None:
        """Answer what has halted at every network, and fail what one could not answer."""
        answered = [(number, list(answers.read())) for number, answers in self._answers]
        self._answers.clear()
        for number, predictions in answered:
            for ticket, prediction in predictions:
                if isinstance(prediction, InferenceError):
                    self._leave(ticket)
                    ticket.settle(prediction)
                    continue
                ticket.predictions[number] = prediction
                if len(ticket.predictions) == len(self.networks):
                    ticket.settle(self._joined(ticket))

    def _joined(self, ticket: _Ticket) -> Prediction | Exception:
        predictions = [prediction for _, prediction in sorted(ticket.predictions.items())]
        if self._join is None:
            return predictions[0]
        try:
            return self._join(predictions)
        except Exception as error:  # noqa: BLE001 - it belongs to the example
            return error

    def _leave(self, ticket: _Ticket) -> None:
        """Free the slot of an example that one network failed, at the others too."""
        if ticket in self._active:
            del self._active[ticket]
            self._lanes.remove({ticket})

    def _in_work(self) -> list[_Ticket]:
        """What is in slots or halted but not answered yet, the oldest first."""
        halted = (ticket for _, answers in self._answers for ticket in answers.occupants)
        return [ticket for ticket in dict.fromkeys((*halted, *self._active)) if not ticket.settled]

    def _clear(self) -> None:
        self._fresh.clear()
        self._active.clear()
        self._answers.clear()
        self._lanes.clear()

    def _go_on_with_fewer_slots(self, tickets: Sequence[_Ticket]) -> None:
        """Put `works` back to the front of the queue; they begin again at their first step."""
        with self._changed:
            self._clear()
            self._waiting.extendleft(
                _Ticket(ticket.example, ticket.max_steps, ticket.future)
                for ticket in reversed(tickets)
            )
            self._lanes.shrink(in_work=len(tickets))
        self._lanes.allocate()


def _note_if_cancelled(cancelled: deque[Future[Prediction]], future: Future[Prediction]) -> None:
    if future.cancelled():
        cancelled.append(future)


def _settle(tickets: Iterable[_Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.settle(error)
