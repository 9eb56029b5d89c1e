"""The rows of one network on its device: fixed memory, of which some rows are in work.

Knows tensors and ACT steps; nothing of futures, queues or other networks. A row in work belongs to
an occupant, which means nothing here.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hrm.inference.prediction import InferenceError, Prediction
from hrm.inference.threads import RowWork
from hrm.inference.transfers import ToHost, to_device
from hrm.kernels.graphs import Capture, Graphs, cuda_capture
from hrm.model.batch import encode_inputs
from hrm.model.network import HRM, State
from schemas import HaltedBy, HRMExample

Occupant = TypeVar("Occupant")

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""Texts of errors for which torch has no type: from CUDA and Triton, the CPU, and cuBLAS."""

DEVICE_FAILURES = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")
"""Texts of errors after which a GPU does nothing more for this process. torch has a type for those
of its own calls only."""


@dataclass(slots=True, eq=False)
class _Row(Generic[Occupant]):
    """A row in work, and what the host knows of it."""

    occupant: Occupant
    limit: int
    """The most ACT steps."""
    act_steps: int = 0
    q_flips: int = 0
    q_halt: float = math.nan
    q_continue: float = math.nan

    @property
    def prefers_halt(self) -> bool:
        return self.q_halt > self.q_continue

    def note_step(self, q_halt: float, q_continue: float) -> None:
        preferred_halt, self.q_halt, self.q_continue = self.prefers_halt, q_halt, q_continue
        self.q_flips += self.act_steps > 0 and self.prefers_halt != preferred_halt
        self.act_steps += 1


class Answers(Generic[Occupant]):
    """The predictions of the rows that halted at one step. The device may still work on them."""

    def __init__(
        self,
        rows: Sequence[_Row[Occupant]],
        logits: Tensor,
        *,
        halting: HaltedBy,
        keep_logits: bool,
    ) -> None:
        self._rows = rows
        self._tokens = ToHost(logits.argmax(-1))
        self._finite = ToHost(logits.isfinite().all((1, 2)))
        self._logits = ToHost(logits.float()) if keep_logits else None
        self._halting = halting

    @property
    def occupants(self) -> list[Occupant]:
        """The occupants of the rows."""
        return [row.occupant for row in self._rows]

    def read(self) -> Iterator[tuple[Occupant, Prediction | InferenceError]]:
        """Wait for the device; yield each occupant's prediction, or the reason why it has none."""
        kept = [None] * len(self._rows) if self._logits is None else self._logits.read()
        for row, tokens, finite, logits in zip(
            self._rows,
            self._tokens.read().tolist(),
            self._finite.read().tolist(),
            kept,
            strict=True,
        ):
            if not (finite and math.isfinite(row.q_halt) and math.isfinite(row.q_continue)):
                yield (
                    row.occupant,
                    InferenceError("the network's answer is not finite for this example"),
                )
                continue
            by_q = self._halting is HaltedBy.Q and row.prefers_halt
            yield (
                row.occupant,
                Prediction(
                    tokens=tuple(tokens),
                    act_steps=row.act_steps,
                    halted_by=HaltedBy.Q if by_q else HaltedBy.MAX_STEPS,
                    q_halt=row.q_halt,
                    q_continue=row.q_continue,
                    q_flips=row.q_flips,
                    logits=logits,
                ),
            )


class Lane(Generic[Occupant]):
    """Memory for the examples in work at one network.

    On a GPU a lane has a stream of its own, and its steps are captured (`hrm.kernels.graphs`). Only
    one thread may call the methods, in inference mode. `compute` is the exception: several threads
    may call it, each for its own rows.

    Args:
        network: The network, in evaluation mode.
        capacity: Number of rows.
        halting: The rule by which rows halt.
        keep_logits: Whether predictions carry their logits.
    """

    def __init__(
        self,
        network: HRM,
        capacity: int,
        *,
        halting: HaltedBy,
        keep_logits: bool = False,
    ) -> None:
        self.network = network
        self.device = network.H_init.device
        self._halting = halting
        self._keep_logits = keep_logits
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self.device)  # the weights were written on another stream
        config = network.config
        shape = (capacity, config.puzzle_emb_len + config.seq_len, config.hidden_size)
        with self._on_stream():
            # Zeros, since steps of fixed sizes compute rows without an occupant too.
            self._x, self._z_H, self._z_L = (
                torch.zeros(shape, dtype=network.forward_dtype, device=self.device)
                for _ in range(3)
            )
            self._q_logits = torch.zeros(capacity, 2, device=self.device)
            capture = self._capture()
            self._replay = None if capture is None else self._captured(capacity, capture)
        self._rows: list[_Row[Occupant] | None] = []
        """In the order of the device's tensors above; None for a row that is free."""
        self._in_flight: slice | Tensor = slice(0)
        """The places of the rows whose step is in flight."""
        self._sent: ToHost | None = None

    @property
    def is_asynchronous(self) -> bool:
        """Whether the host is free while the device computes."""
        return self._stream is not None

    @property
    def needs_threads(self) -> bool:
        """Whether the host's threads compute the steps."""
        return self._replay is None

    def admit(
        self, occupants: Sequence[Occupant], examples: Sequence[HRMExample], limits: Sequence[int]
    ) -> None:
        """Give each of `occupants` a row, with its example at the start of its first ACT step.

        Args:
            occupants: New owners of rows.
            examples: The example of each.
            limits: How many steps each gets at most.
        """
        holes = [place for place, row in enumerate(self._rows) if row is None]
        end = len(self._rows)
        self._rows += [None] * max(0, len(occupants) - len(holes))
        places = [*holes, *range(end, len(self._rows))][: len(occupants)]
        inputs, puzzle_ids = encode_inputs(examples, self.network.config)
        with self._on_stream():
            index = self._index(places)
            puzzles = self.network.puzzle_embedding(to_device(puzzle_ids, self.device))
            x = self.network.embed(to_device(inputs, self.device), puzzles)
            state = self.network.initial_state(len(places))
            for memory, values in ((self._x, x), (self._z_H, state.z_H), (self._z_L, state.z_L)):
                memory[index] = values
        for place, occupant, limit in zip(places, occupants, limits, strict=True):
            self._rows[place] = _Row(occupant, limit)

    def remove(self, occupants: Collection[Occupant]) -> None:
        """Free the rows of `occupants`, even during a step. Those without a row are ignored."""
        if not occupants:
            return
        for place, row in enumerate(self._rows):
            if row is not None and row.occupant in occupants:
                self._rows[place] = None

    def clear(self) -> None:
        """Free all rows, and forget a step that was begun."""
        self._rows.clear()
        self._sent = None

    def begin(self, chosen: Collection[Occupant] | None = None) -> list[tuple[RowWork, int]]:
        """Prepare a step over the rows of `chosen`, or over all rows, which are brought together.

        Returns what computes the rows, each with its number of rows. Neighbours are computed in one
        call, which is 5 % faster than one for each.
        """
        if chosen is None:
            self._compact()
            self._in_flight = slice(len(self._rows))
            return [(partial(self.compute, 0), len(self._rows))]
        places = [place for place, row in enumerate(self._rows) if row and row.occupant in chosen]
        runs = _runs(places)
        self._in_flight = torch.tensor(places, dtype=torch.int64)
        if len(runs) == 1:
            self._in_flight = slice(places[0], places[-1] + 1)
        return [(partial(self.compute, first), count) for first, count in runs]

    def compute(self, offset: int, first: int, end: int) -> None:
        """Compute one ACT step in place, for rows `first` up to `end`, counted from `offset`."""
        rows = slice(offset + first, offset + end)
        state = State(self._z_H[rows], self._z_L[rows])
        self.network.step_in_place(state, self._x[rows])
        self._q_logits[rows] = self.network.q_logits(state.z_H)

    def replay(self) -> None:
        """Have the device compute one ACT step over all rows by itself."""
        if self._replay is not None and self._rows:
            with self._on_stream():
                self._replay(len(self._rows))

    def send(self) -> None:
        """Send the step's Q logits to the host, without waiting for them."""
        if self._rows:
            with self._on_stream():
                self._sent = ToHost(self._q_logits[self._in_flight])

    def finish(self) -> Answers[Occupant] | None:
        """Wait for the step, free the rows that halt at it, and begin their answers."""
        if self._sent is None:
            return None
        q_logits, in_flight, self._sent = self._sent.read().tolist(), self._in_flight, None
        places = (
            range(len(self._rows))[in_flight]
            if isinstance(in_flight, slice)
            else in_flight.tolist()
        )
        halted: list[int] = []
        rows: list[_Row[Occupant]] = []
        for place, (q_halt, q_continue) in zip(places, q_logits, strict=True):
            row = self._rows[place]
            if row is None:  # it was removed during the step
                continue
            row.note_step(q_halt, q_continue)
            by_q = self._halting is HaltedBy.Q and row.prefers_halt
            if by_q or row.act_steps >= row.limit:
                self._rows[place] = None
                halted.append(place)
                rows.append(row)
        if not rows:
            return None
        with self._on_stream():
            return Answers(
                rows,
                self.network.token_logits(self._z_H.index_select(0, self._index(halted))),
                halting=self._halting,
                keep_logits=self._keep_logits,
            )

    def _compact(self) -> None:
        """Move the last rows into the holes, so that the rows in work come first."""
        count = sum(row is not None for row in self._rows)
        holes = [place for place in range(count) if self._rows[place] is None]
        if holes:
            movers = [
                place for place in range(count, len(self._rows)) if self._rows[place] is not None
            ]
            with self._on_stream():
                to, source = self._index(holes), self._index(movers)
                for memory in (self._x, self._z_H, self._z_L):
                    memory[to] = memory.index_select(0, source)
            for hole, mover in zip(holes, movers, strict=True):
                self._rows[hole] = self._rows[mover]
        del self._rows[count:]

    def _captured(self, capacity: int, capture: Capture) -> Callable[[int], None]:
        """Return the function that computes a given number of the first rows."""
        compute = partial(self.compute, 0, 0)
        try:
            return Graphs(compute, capacity, capture)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            said = str(error).partition("\n")[0]
            logger.warning("steps are launched kernel by kernel: they cannot be captured: %s", said)
            # Still with the same few sizes, since libraries make plans for every new one.
            return Graphs(compute, capacity, lambda work: work)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(rows, dtype=torch.int64), self.device)

    def _capture(self) -> Capture | None:
        return None if self._stream is None else cuda_capture(self._stream)

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        stream = self._stream
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first row and the length of each run of consecutive rows in ascending `rows`."""
    runs = (list(run) for _, run in groupby(enumerate(rows), lambda place: place[1] - place[0]))
    return [(run[0][1], len(run)) for run in runs]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error` is, or was caused by, a lack of the device's memory."""
    return error is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and any(each in str(error) for each in OUT_OF_MEMORY))
        or is_out_of_memory(error.__context__)
    )


def is_device_failure(error: BaseException) -> bool:
    """Return whether `error` says that the device failed, such as a GPU that was lost.

    After the first error of this kind, CUDA answers every call of the process with it. A lack of
    memory is none.
    """
    return not is_out_of_memory(error) and (
        isinstance(error, torch.AcceleratorError)
        or (isinstance(error, RuntimeError) and any(each in str(error) for each in DEVICE_FAILURES))
    )
