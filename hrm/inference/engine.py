"""The engine: answers examples with one network or several on one device, in one thread.

Knows the order of work and futures. Tensors are the subject of `hrm.inference.lane`; nothing here
knows messages.

The scheduler, for a newcomer. `submit` puts an example into a bounded queue and returns a future at
once. A thread owns the networks and takes turns. In a turn it gives free slots to examples from the
front of the queue, runs one ACT step over all examples in slots, each at an ACT step of its own,
and answers the examples that have halted. That frees their slots for the next turn. So nobody waits
for a batch to form or to finish, and a step computes only slots with an example. Each network keeps
its examples in the first rows of fixed memory, a lane. CPU threads share the rows of a step; a GPU
replays a step that was captured for the nearest of a few sizes. On a GPU the host prepares and
delivers while the device computes, and waits for it once a turn, for two numbers of each example
that decide whether it halts.

A CPU step takes time in proportion to its rows, so examples that are in work together slow each
other down. While slots are free, a CPU turn is for one example only, or for one per thread if there
are more than two threads. Under `q` it is for the examples with the fewest steps done: most
examples halt after one or two steps, a few after many, and nobody knows before (least attained
service first, Kleinrock, 1976). Otherwise it is for the examples with the fewest steps left. When
all slots are taken, a turn is for all of them: no example starves, and slots become free.

An example is urgent or not. The others wait until no urgent one does, and cannot take the slots in
reserve, so an urgent example need not wait until another halts. A CPU turn is for urgent examples
alone while there are any in slots, except for one turn in nine, so that the others end some time.
While urgent ones come every now and then, a CPU turn of others ends early for them: others are
computed one per thread at a time, those first that have waited longest for their turn. A GPU turn
is always for all.

Several networks are an ensemble: an example takes one slot, leaves each network when it halts
there, and frees the slot when the last network is done. If the device's memory does not suffice,
the examples in slots go back to the front of the queue, and the engine goes on with half the slots.
If the device fails, the engine ends, since CUDA then answers every call with the same error.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter

import torch

from hrm.inference.lane import Answers, is_device_failure, is_out_of_memory
from hrm.inference.lanes import Lanes
from hrm.inference.prediction import (
    EngineClosedError,
    EngineFailedError,
    EngineFullError,
    EngineStatistics,
    InferenceError,
    Prediction,
)
from hrm.inference.threads import end_openmp_threads
from hrm.kernels import describe, product_dtype
from hrm.model.batch import check_fits
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample, SQEHRMError

MIN_QUEUE_LIMIT = 1024
"""How many examples may wait, or twice the slots if that is more: all slots can free at once."""

THREADS_PER_EXAMPLE = 2
"""CPU threads that work on one example together.

Measured: two threads finish a step of one example in 3.0 ms, one thread in 5.0 ms. Giving each
thread an example of its own is hardly faster overall, and the first answer comes later. More than
two threads were not measured."""

URGENT_TURNS = 8
"""Turns of urgent examples after which a CPU gives the others one, if both are in slots.

Under an unbroken load of urgent examples, the others get a ninth of the turns."""

CALM_TURNS = 256
"""Turns without an urgent example after which a turn of the others no longer ends early for one.

To compute one example per thread at a time takes a tenth longer, since the weights leave the
cores' caches between them. An unmixed load is as fast as ever. The first urgent example after such
a pause waits for a whole turn: 16 ms with 8 slots, two threads and `sqe-demo`."""

Join = Callable[[Sequence[Prediction]], Prediction]
"""Turns the predictions of several networks, in their order, into one."""


@dataclass(eq=False)
class _Ticket:
    """An example on its way through the engine."""

    example: HRMExample
    max_steps: int | None
    urgent: bool
    future: Future[Prediction] = field(default_factory=Future)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    """By number of the network."""
    halted: int = 0
    """Number of networks at which it has halted."""
    steps: int = 0
    """ACT steps computed for it."""
    turn: int = 0
    """Number of the last turn that computed it, or of the last one before it took a slot."""
    settled: bool = False

    def settle(self, outcome: Prediction | Exception) -> None:
        """Give the future its outcome. Only the first one counts."""
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
    """Answers examples with one network, or with several as one, in a thread of its own.

    The engine owns the networks until `close`.

    Args:
        network: One network or several, in evaluation mode and on one device.
        slots: Number of examples in work at once. Urgent examples have further slots in reserve,
            for when others have taken these: as many on a CPU, an eighth on a GPU.
        halting: `max_steps` runs every example for `max_steps` ACT steps, as the reference's
            evaluation does. `q` ends an example at the first step at which `q_halt > q_continue`,
            and at `max_steps` at the latest.
        max_steps: Limit of ACT steps (default: the configuration's `halt_max_steps`).
        queue_limit: How many urgent examples may wait for a slot, and how many others (default:
            1024, and at least twice the slots).
        keep_logits: Whether predictions carry their logits.
        join: How the predictions of several networks become one.
        threads: Number of CPU threads (default: as many as torch uses).

    Raises:
        DeviceMemoryError: The device has no room for a single slot.
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
        self._steps = self._occupied = self._refills = self._answered = self._turns = 0
        self._in_turn, self._busy_seconds = False, 0.0
        self._waiting: dict[bool, deque[_Ticket]] = {True: deque(), False: deque()}
        """The queues: of urgent examples, and of others."""
        self._fresh: list[_Ticket] = []
        """Examples in slots that are in no lane yet."""
        self._active: dict[_Ticket, None] = {}
        """Examples in slots, the oldest first."""
        self._urgent_turns = 0
        """Turns of urgent examples since the last turn of others."""
        self._calm_turns = CALM_TURNS
        """Turns since an urgent example was in a slot; none came yet."""
        self._answers: list[tuple[int, Answers[_Ticket]]] = []
        """Answers not delivered yet, each with the number of its network."""
        self._cancelled: deque[Future[Prediction]] = deque()
        """Futures cancelled since the last turn."""
        self._closed = False
        self._ended: SQEHRMError = EngineClosedError("the engine is closed")
        """The error that examples get after the end."""
        self._changed = threading.Condition()
        self._lanes: Lanes[_Ticket] = Lanes(
            self.networks,
            slots,
            halting=halting,
            keep_logits=keep_logits,
            threads=threads or torch.get_num_threads(),
        )
        end_openmp_threads()  # those that loaded the network would slow down the engine's
        self._thread = threading.Thread(target=self._run, name="hrm-engine", daemon=True)
        self._thread.start()

    @property
    def max_steps(self) -> int:
        """Limit of ACT steps for an example that is submitted without a limit of its own."""
        return max(self._limits)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations, or int8 if the levels multiply in it."""
        return product_dtype(self.networks[0])

    @property
    def computed_by(self) -> str:
        """Description of the form of the levels."""
        return describe(self.networks[0])

    @property
    def statistics(self) -> EngineStatistics:
        """The engine's state at this moment, and its counts since the start."""
        with self._changed:
            return EngineStatistics(
                slots=self._lanes.slots,
                busy_slots=len(self._active),
                waiting=sum(map(len, self._waiting.values())),
                steps=self._steps,
                occupied=self._occupied,
                refills=self._refills,
                answered=self._answered,
                turns=self._turns,
                in_turn=self._in_turn,
                busy_seconds=self._busy_seconds,
                slot_reductions=self._lanes.reductions,
            )

    def submit(
        self, example: HRMExample, *, max_steps: int | None = None, urgent: bool = True
    ) -> Future[Prediction]:
        """Queue `example` and return the future of its prediction, without waiting.

        The future raises `InferenceError` if a network's answer is not finite, `EngineClosedError`
        if the engine closed before the example took a slot, and `EngineFailedError` if the device
        failed. Cancelling the future frees its slot, or its place in the queue, at the next turn.

        Args:
            example: The example.
            max_steps: Its own limit of ACT steps.
            urgent: Whether it goes before those that are not urgent.

        Raises:
            ExampleError: The example does not fit a network.
            EngineFullError: The queue of urgent examples, or that of the others, is full.
            EngineClosedError: The engine was closed.
            EngineFailedError: The device failed.
        """
        for network in self.networks:
            check_fits(example, network.config)
        ticket = _Ticket(example, max_steps, urgent)
        # The callback must not hold the engine itself: a future may outlive it.
        ticket.future.add_done_callback(partial(_note_if_cancelled, self._cancelled))
        with self._changed:
            if self._closed:
                raise self._ended
            if len(self._waiting[urgent]) >= self.queue_limit:
                raise EngineFullError(
                    f"{self.queue_limit} examples wait already: submit again when one is answered"
                )
            self._waiting[urgent].append(ticket)
            self._changed.notify_all()
        return ticket.future

    def wait_for_room(self, timeout: float | None = None, *, urgent: bool = True) -> bool:
        """Wait until the queue has room for an example that is `urgent`, or for one that is not.

        Return True also if the engine closes, and False after `timeout` seconds.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or len(self._waiting[urgent]) < self.queue_limit, timeout
            )

    def close(self) -> None:
        """Finish the examples in slots, fail those in the queue, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # a future's callback may close
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        ended: SQEHRMError = EngineFailedError("the engine ended: its error is in the log")
        try:
            while self._take():
                self._in_turn, began = True, time.perf_counter()
                self._turn()
                self._busy_seconds += time.perf_counter() - began
                self._turns += 1
                self._in_turn = False
            ended = self._ended
        except SQEHRMError as error:
            ended = error
        except Exception as error:
            if not is_device_failure(error):
                raise
            said = str(error).partition("\n")[0]
            ended = EngineFailedError(f"the device failed: {said}")
        finally:  # whatever ended the thread, no future may stay without an outcome
            with self._changed:
                self._closed, self._ended, self._in_turn = True, ended, False
                left = [*self._in_work(), *self._leave_queues()]
                self._changed.notify_all()
            self._clear()
            self._lanes.close()
            _settle(left, ended)

    def _take(self) -> bool:
        """Wait for work and give free slots to waiting examples. Return False at the end."""
        refused: list[_Ticket] = []
        with self._changed:
            self._changed.wait_for(
                lambda: self._active or self._answers or any(self._waiting.values()) or self._closed
            )
            cancelled = self._drop_cancelled()
            if self._closed:
                refused = self._leave_queues()
            at_work = bool(self._active)
            for ticket in self._leave_queues_for_slots():
                self._active[ticket] = None
                ticket.turn = self._turns
                self._fresh.append(ticket)
                self._refills += at_work
            self._changed.notify_all()
            goes_on = bool(self._active or self._answers) or not self._closed
        self._lanes.remove(cancelled)
        _settle([*cancelled, *refused], self._ended)
        return goes_on

    def _leave_queues(self) -> list[_Ticket]:
        """Take all examples out of the queues."""
        left = [ticket for queue in self._waiting.values() for ticket in queue]
        for queue in self._waiting.values():
            queue.clear()
        return left

    def _leave_queues_for_slots(self) -> list[_Ticket]:
        """Take the examples out of the queues that get a slot now, urgent ones first."""
        slots, reserve = self._lanes.slots, self._lanes.reserve
        in_slots = len(self._active)
        free = slots - sum(ticket.urgent for ticket in self._active)
        urgent = _pop(self._waiting[True], min(free, slots + reserve - in_slots))
        return urgent + _pop(self._waiting[False], slots - in_slots - len(urgent))

    def _drop_cancelled(self) -> set[_Ticket]:
        """Remove examples cancelled since the last turn from slots and queue, and return them."""
        futures = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if not futures:
            return set()
        known = chain(self._active, *self._waiting.values())
        dropped = {ticket for ticket in known if ticket.future in futures}
        self._active = {ticket: None for ticket in self._active if ticket not in dropped}
        for urgent, queue in self._waiting.items():
            self._waiting[urgent] = deque(ticket for ticket in queue if ticket not in dropped)
        return dropped

    def _turn(self) -> None:
        error: Exception | None = None
        try:
            self._step()
        except Exception as raised:  # noqa: BLE001 - the examples in work get it
            error = raised
        if error is None:
            return
        tickets = self._in_work()
        if is_out_of_memory(error) and self._lanes.can_shrink(len(tickets)):
            error = None  # the frames of its traceback hold memory of the device
            self._go_on_with_fewer_slots(tickets)
        elif is_device_failure(error):
            raise error
        else:
            self._clear()
            _settle(tickets, error)

    def _step(self) -> None:
        """Run one ACT step over this turn's examples, and take the answers of those that halt."""
        fresh, self._fresh = self._fresh, []
        if fresh:
            self._lanes.admit(
                fresh,
                [ticket.example for ticket in fresh],
                [[ticket.max_steps or limit for ticket in fresh] for limit in self._limits],
            )
        chosen = self._chosen()
        pauses = chosen and not chosen[0].urgent
        chosen = self._lanes.launch(chosen, goes_on=self._no_urgent_waits if pauses else None)
        computed = self._active if chosen is None else chosen
        with self._changed:
            self._steps += bool(computed)
            self._occupied += len(computed)
        for ticket in computed:
            ticket.steps += 1
            ticket.turn = self._turns + 1
        self._deliver()  # answers of the step before, while the device computes this one
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
        """Choose the examples of this turn, the oldest first among equals. None: all in slots."""
        if not self._lanes.needs_threads:
            return None
        urgent = [ticket for ticket in self._active if ticket.urgent]
        others = [ticket for ticket in self._active if not ticket.urgent]
        threads = self._lanes.threads
        count = threads if threads > THREADS_PER_EXAMPLE else 1
        self._calm_turns = 0 if urgent else self._calm_turns + 1
        if urgent and not (others and self._urgent_turns >= URGENT_TURNS):
            self._urgent_turns += 1
            if len(urgent) < self._lanes.slots:
                return heapq.nsmallest(count, urgent, key=self._rank)
            return urgent if others else None
        self._urgent_turns = 0
        if len(others) < self._lanes.slots:
            return heapq.nsmallest(count, others, key=self._rank)
        if self._calm_turns >= CALM_TURNS:
            return None
        others.sort(key=attrgetter("turn"))
        return others[:count] if urgent else others

    def _no_urgent_waits(self) -> bool:
        return not self._waiting[True]

    def _rank(self, ticket: _Ticket) -> int:
        """Rank an example for the next turn, the lowest first; see the module's docstring."""
        if self.halting is HaltedBy.Q:
            return ticket.steps
        return (ticket.max_steps or self.max_steps) - ticket.steps

    def _deliver(self) -> None:
        """Answer examples that halted at every network; fail those that one could not answer."""
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
                    self._answered += 1
                    ticket.settle(self._joined(ticket))

    def _joined(self, ticket: _Ticket) -> Prediction | Exception:
        predictions = [prediction for _, prediction in sorted(ticket.predictions.items())]
        if self._join is None:
            return predictions[0]
        try:
            return self._join(predictions)
        except Exception as error:  # noqa: BLE001 - the example gets it
            return error

    def _leave(self, ticket: _Ticket) -> None:
        """Free the slot of an example that failed at one network, at all others too."""
        if ticket in self._active:
            del self._active[ticket]
            self._lanes.remove({ticket})

    def _in_work(self) -> list[_Ticket]:
        """Examples in slots, and those that halted but have no answer yet; the oldest first."""
        halted = (ticket for _, answers in self._answers for ticket in answers.occupants)
        return [ticket for ticket in dict.fromkeys((*halted, *self._active)) if not ticket.settled]

    def _clear(self) -> None:
        self._fresh.clear()
        self._active.clear()
        self._answers.clear()
        self._lanes.clear()

    def _go_on_with_fewer_slots(self, tickets: Sequence[_Ticket]) -> None:
        """Put `tickets` back to the front of their queues, to begin again, and halve the slots."""
        with self._changed:
            self._clear()
            for ticket in reversed(tickets):
                self._waiting[ticket.urgent].appendleft(
                    _Ticket(ticket.example, ticket.max_steps, ticket.urgent, ticket.future)
                )
            self._lanes.shrink(in_work=len(tickets))
        self._lanes.allocate()  # without the lock: the device may hang, and this is to be seen


def _note_if_cancelled(cancelled: deque[Future[Prediction]], future: Future[Prediction]) -> None:
    if future.cancelled():
        cancelled.append(future)


def _pop(queue: deque[_Ticket], limit: int) -> list[_Ticket]:
    """Take up to `limit` examples from the front of `queue`."""
    return [queue.popleft() for _ in range(min(limit, len(queue)))]


def _settle(tickets: Iterable[_Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.settle(error)
