"""A cache before a predictor: equal examples get one prediction.

Knows futures and what makes two examples equal to a network; nothing of networks themselves.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from hrm.inference.prediction import (
    Answered,
    EngineClosedError,
    EngineStatistics,
    Prediction,
    Predictor,
)
from hrm.model.config import HRMConfig
from schemas import HaltedBy, HRMExample

UNPACKED = 4096
"""Predictions that are also kept unpacked, since unpacking one takes longer than finding it. With
100 tokens each they take some 5 MB."""

_Packed = bytes | str
"""Tokens in one or two bytes each, without pointers."""

_Key = tuple[int, _Packed, int | None]
"""Puzzle, input and limit of ACT steps: a prediction depends on these, but not on the target."""


class _Kept(NamedTuple):
    """A prediction, packed."""

    tokens: _Packed
    act_steps: int
    halted_by: HaltedBy
    q_halt: float
    q_continue: float
    q_flips: int

    @classmethod
    def of(cls, prediction: Prediction) -> "_Kept":
        return cls(
            _packed(prediction.tokens),
            prediction.act_steps,
            prediction.halted_by,
            prediction.q_halt,
            prediction.q_continue,
            prediction.q_flips,
        )

    def prediction(self) -> Prediction:
        return Prediction(_unpacked(self.tokens), *self[1:])


@dataclass
class _Pending:
    """An example that the predictor works on, and the futures that wait for its prediction."""

    inner: Future[Prediction] | None
    """None once it has answered."""
    urgent: bool
    futures: list[Future[Prediction]] = field(default_factory=list)


class CachedPredictor:
    """A predictor that asks another one only about examples that it has not seen lately.

    It keeps the predictions of the last `entries` different examples and drops the least recently
    used first. A prediction of 100 tokens takes about 0.6 kB. An example equal to one still in work
    waits for that one's prediction; an urgent one takes the place of one that is not, which then
    waits for it. Every answer comes from this `predictor`, with its checkpoint,
    halting rule and dtype: no prediction crosses checkpoints. A failure goes to everyone who waits
    for it and is not kept. Logits are not kept either, so `predictor` must not keep them.

    Threads may share a cache. Closing it closes `predictor`.

    Args:
        predictor: Makes the predictions.
        config: The network's configuration. `predictor` refuses a target that is too long for it.
        entries: Number of predictions to keep.
    """

    def __init__(self, predictor: Predictor, config: HRMConfig, *, entries: int) -> None:
        self._predictor = predictor
        self._config = config
        self._entries = entries
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._unpacked = lru_cache(maxsize=UNPACKED)(_Kept.prediction)
        self._pending: dict[_Key, _Pending] = {}
        self._hits = 0
        self._misses = 0
        self._closed = False
        # Never held while the predictor is called or a future calls back: either may submit again.
        self._lock = threading.Lock()

    @property
    def statistics(self) -> EngineStatistics:
        """The predictor's statistics, with the hits and misses of this cache."""
        inner = self._predictor.statistics
        with self._lock:
            return replace(inner, cache_hits=self._hits, cache_misses=self._misses)

    @property
    def halting(self) -> HaltedBy:
        """The predictor's halting rule."""
        return self._predictor.halting

    @property
    def max_steps(self) -> int:
        """The predictor's limit of ACT steps."""
        return self._predictor.max_steps

    @property
    def dtype(self) -> torch.dtype:
        """The predictor's dtype."""
        return self._predictor.dtype

    def submit(
        self, example: HRMExample, *, max_steps: int | None = None, urgent: bool = True
    ) -> Future[Prediction]:
        """Answer `example` from an equal one, or submit it to the predictor; see `Engine.submit`.

        Every call has a future of its own. Cancelling one leaves those of equal examples alone;
        cancelling all of them cancels the work.
        """
        key = (example.puzzle_id, _packed(example.input_sequence), max_steps)
        # The predictor refuses an example that does not fit. An equal one with a shorter target may
        # have been answered, so a target that is too long must not be looked up.
        fits = len(example.target_sequence) <= self._config.seq_len
        with self._lock:
            future = self._find(key, urgent=urgent) if fits else None
            self._hits += future is not None
        if future is None:
            inner = self._predictor.submit(example, max_steps=max_steps, urgent=urgent)
            future = self._begin(key, inner, urgent=urgent)
        return future

    def wait_for_room(self, timeout: float | None = None, *, urgent: bool = True) -> bool:
        """Wait until the predictor's queue has room; see `Engine.wait_for_room`."""
        return self._predictor.wait_for_room(timeout, urgent=urgent)

    def close(self) -> None:
        """Take no more examples, and close the predictor."""
        with self._lock:
            self._closed = True
        self._predictor.close()

    def _find(self, key: _Key, *, urgent: bool) -> Future[Prediction] | None:
        """Return a future for the answer of an equal example, if one is known or due in time."""
        if self._closed:
            raise EngineClosedError("the engine is closed")
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return Answered(self._unpacked(kept))
        pending = self._pending.get(key)
        if pending is None or pending.urgent < urgent:
            return None
        return self._attach(key, pending)

    def _begin(self, key: _Key, inner: Future[Prediction], *, urgent: bool) -> Future[Prediction]:
        """Return a future for the answer of `inner`, which equal examples also get from now on."""
        unused: Future[Prediction] | None = None
        with self._lock:
            self._misses += 1
            pending = self._pending.setdefault(key, _Pending(inner, urgent))
            if pending.urgent < urgent:
                unused, pending.inner, pending.urgent = pending.inner, inner, urgent
            elif pending.inner is not inner:
                # Another thread has begun an equal example meanwhile: its work is for both.
                unused = inner
            future = self._attach(key, pending)
        if unused is not inner:
            inner.add_done_callback(partial(self._answer, key, pending))
        if unused is not None:
            unused.cancel()
        return future

    def _attach(self, key: _Key, pending: _Pending) -> Future[Prediction]:
        future: Future[Prediction] = Future()
        future.add_done_callback(partial(self._give_up_if_cancelled, key, pending))
        pending.futures.append(future)
        return future

    def _answer(self, key: _Key, pending: _Pending, inner: Future[Prediction]) -> None:
        with self._lock:
            if inner is not pending.inner:  # the work for an urgent example took its place
                return
            self._forget(key, pending)
            # All of them keep their callbacks, and those keep this.
            futures, pending.futures, pending.inner = pending.futures, [], None
            if not inner.cancelled() and inner.exception() is None:
                self._keep(key, inner.result())
        for future in futures:
            if not future.set_running_or_notify_cancel():
                continue
            error = inner.exception()
            if error is None:
                future.set_result(inner.result())
            else:
                future.set_exception(error)

    def _give_up_if_cancelled(
        self, key: _Key, pending: _Pending, future: Future[Prediction]
    ) -> None:
        if not future.cancelled():
            return
        with self._lock:
            inner = pending.inner
            if inner is None or not all(other.cancelled() for other in pending.futures):
                return
            self._forget(key, pending)
        inner.cancel()

    def _forget(self, key: _Key, pending: _Pending) -> None:
        """Stop further callers from attaching to `pending`. Those attached still get its answer."""
        if self._pending.get(key) is pending:
            del self._pending[key]

    def _keep(self, key: _Key, prediction: Prediction) -> None:
        self._kept[key] = _Kept.of(prediction)
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)


def without_cache(predictor: Predictor) -> Predictor:
    """The predictor behind a cache, which computes every answer; `predictor` if it is no cache."""
    return predictor._predictor if isinstance(predictor, CachedPredictor) else predictor  # noqa: SLF001


def _packed(tokens: Sequence[int]) -> _Packed:
    """Pack tokens; those that all fit into bytes several times faster than others."""
    try:
        return bytes(tokens)
    except ValueError:
        return "".join(map(chr, tokens))


def _unpacked(tokens: _Packed) -> tuple[int, ...]:
    return tuple(tokens) if isinstance(tokens, bytes) else tuple(map(ord, tokens))
