"""Change of a worker's checkpoint while it works, and the test of its own answers.

One thread does both, so that they never meet. Knows models and how they are tested; nothing of
Redis, and nothing of how a model is read.
"""

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from schemas import SQEHRMError
from worker.delivery.hand import Hand
from worker.evaluator import EngineClosedError, Evaluator, Model, Named
from worker.process import devices
from worker.process.swap import Swap
from worker.telemetry.metrics import Metrics, Reload

logger = logging.getLogger(__name__)

SELF_TEST_SECONDS = 60.0
"""Pause between two self-tests of an idle worker. Each costs a fraction of a second."""

SHORT_OF_HALF = 2
"""A self-test has failed if fewer than one in this many pairs are solved. A device or a kernel that
computes wrongly solves none. A dtype that rounds otherwise than the one of the record loses one
pair in a hundred, and so more than half of eight practically never."""

RELEASE_SECONDS = 10.0
"""Longest wait for the outcomes of an evaluator to be built that has left. Until then, they keep
its memory."""

RELEASE_LOOK_SECONDS = 0.05
"""Pause between two looks at that."""

ReadModel = Callable[[str | None], Model]
"""Reads and checks the checkpoint with a name or path, or with None what the worker is set to."""


class SelfTestError(SQEHRMError):
    """A worker's own answers are wrong."""


@dataclass(frozen=True)
class Reloaded:
    """The end of a request to reload."""

    result: Reload
    serving: str
    """Name and short digest of the checkpoint that serves now."""
    before: str | None = None
    """The same of the one that served before, if it is another."""
    reason: str | None = None
    """Why the request was refused."""


OnReloaded = Callable[[Reloaded], object]


def in_short(model: Named) -> str:
    """A checkpoint's name and the beginning of its digest."""
    return f"{model.name} ({model.digest[:12]})"


class Reloader:
    """The thread that changes a worker's checkpoint when asked, and tests it while it is idle.

    Args:
        read_model: Reads what to serve.
        device: The pinned device, which the models share.
        metrics: Counts reloads and self-tests.
    """

    def __init__(self, read_model: ReadModel, device: devices.Device, metrics: Metrics) -> None:
        self._read_model = read_model
        self._device = device
        self._metrics = metrics
        self._requests: queue.SimpleQueue[tuple[str | None, OnReloaded] | None] = (
            queue.SimpleQueue()
        )
        """Requests with who is told of their end; None for a signal, and for the end."""
        self._signalled = False
        self._stopping = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> Swap:
        """Load the first model, which has to pass its self-test.

        Raises:
            SelfTestError: It does not.
            SQEHRMError: It cannot be used.
        """
        model = self._read_model(None)
        evaluator = self._open(model)
        self._swap = Swap(evaluator)
        self._metrics.serves(model.name)
        return self._swap

    def start(self, hand: Hand, on_broken: Callable[[str], object]) -> None:
        """Serve requests from now on, also those made before.

        Args:
            hand: The messages of this worker. It is idle while it has none, and takes none while
                its answers are wrong.
            on_broken: Called with the reason if the engine does not answer any more.
        """
        self._hand = hand
        self._on_broken = on_broken
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Serve no more requests. Waits for at most `timeout` seconds for one under way."""
        self._stopping = True
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join(timeout)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Reload what the worker is set to, soon. Several signals in a row count as one."""
        self._signalled = True
        self._requests.put(None)

    def ask(self, checkpoint: str | None, on_reloaded: OnReloaded) -> None:
        """Load a checkpoint by name or path, or with None what the worker is set to.

        `on_reloaded` is called with the end of it, in another thread.
        """
        self._requests.put((checkpoint, on_reloaded))

    def failure(self) -> str | None:
        """Say that this worker's answers are wrong; None if they are right, as far as is known."""
        return self._failure

    def _run(self) -> None:
        while not self._stopping:
            try:
                request = self._requests.get(timeout=SELF_TEST_SECONDS)
            except queue.Empty:
                self._test_if_idle()
                continue
            if request is not None:
                checkpoint, on_reloaded = request
                on_reloaded(self._reload(checkpoint))
                self._finish()
            elif self._signalled and not self._stopping:
                self._signalled = False
                self._reload(None)
                self._finish()

    def _reload(self, checkpoint: str | None) -> Reloaded:
        """Let another model serve if it can be used, and say how it went."""
        old = self._swap.checkpoint
        serving = in_short(old)
        try:
            model = self._read_model(checkpoint)
            if model.digest == old.digest:
                logger.info("reload: already serving %s", serving)
                return self._ended(Reloaded(Reload.ALREADY_SERVING, serving))
            logger.info("reload: loading %s beside %s", in_short(model), serving)
            self._swap.replace(self._open(model))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old one serves on
            reason = _in_one_line(error)
            logger.error("reload refused, %s serves on: %s", serving, reason)  # noqa: TRY400
            return self._ended(Reloaded(Reload.REFUSED, serving, reason=reason))
        now = in_short(model)
        self._metrics.serves(model.name)
        self._passes()
        logger.info("reloaded: %s serves, %s finishes what it has", now, serving)
        return self._ended(Reloaded(Reload.RELOADED, now, before=serving))

    def _ended(self, reloaded: Reloaded) -> Reloaded:
        self._metrics.reload(reloaded.result)
        return reloaded

    def _finish(self) -> None:
        """Close the evaluator that has left, and free its memory; and that of one refused."""
        left = self._swap.finish()
        end = time.monotonic() + RELEASE_SECONDS
        pause = threading.Event()
        while left is not None and left() is not None and time.monotonic() < end:
            pause.wait(RELEASE_LOOK_SECONDS)
        # What was loaded is kept out of the search for cycles, which would not find these either.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        devices.release(self._device)
        if left is not None:
            logger.info("reload: the checkpoint before is closed")

    def _open(self, model: Model) -> Evaluator:
        """Load a model onto the device, and test it."""
        evaluator = model.open()
        try:
            failure = self._test(evaluator)
        except BaseException:
            evaluator.close()
            raise
        if failure is not None:
            evaluator.close()
            raise SelfTestError(failure)
        return evaluator

    def _test_if_idle(self) -> None:
        """Test the model that serves, if no message waits for it."""
        if len(self._hand):
            return
        try:
            failure = self._test(self._swap.serving)
        except EngineClosedError:
            return  # the worker ends
        except SQEHRMError as error:
            self._on_broken(str(error))
            return
        if failure is None:
            self._passes()
        elif self._failure is None:
            logger.error("%s: it takes no messages", failure)
            self._failure = failure
            self._hand.is_paused = True

    def _passes(self) -> None:
        """Note that the model that serves gives right answers."""
        if self._failure is not None:
            logger.info("the known pairs are solved again: this worker takes messages")
            self._failure = None
            self._hand.is_paused = False

    def _test(self, evaluator: Evaluator) -> str | None:
        """Test an evaluator; returns why its answers cannot be trusted, or None."""
        solved, pairs = evaluator.self_test()
        if not pairs:
            return None
        passed = SHORT_OF_HALF * solved >= pairs
        self._metrics.self_tested(solved, pairs, passed=passed)
        if passed:
            return None
        return (
            f"this worker gives wrong answers: {pairs - solved} of {pairs} known pairs of "
            f"{in_short(evaluator.checkpoint)} are not solved: is the device {evaluator.device} "
            f"sound, and {evaluator.dtype} exact enough? Try --dtype float32 or another device; if "
            "the answers stay wrong, train or record the checkpoint again"
        )


def _in_one_line(error: Exception) -> str:
    """Word an error of loading in one line; one that no one foresaw with its kind."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, SQEHRMError) else f"unexpected {type(error).__name__}: {text}"
