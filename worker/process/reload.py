"""Change of a worker's checkpoint while it works, and the test of its own answers.

One thread does both, so that they never meet. Knows models and how they are tested; nothing of
Redis, and nothing of how a model is read.
"""

import contextlib
import gc
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from schemas import SQEHRMError
from worker.delivery.hand import Hand
from worker.evaluator import EngineClosedError, Evaluator, Model, Named
from worker.process import devices
from worker.process.swap import Swap
from worker.telemetry.labels import Reload, State
from worker.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

SELF_TEST_SECONDS = 60.0
"""Pause between two self-tests of an idle worker. Each costs as much as eight messages."""

SHORT_OF_HALF = 2
"""A self-test has failed if fewer than one in this many pairs are solved. A device or a kernel that
computes wrongly solves none. A dtype that rounds otherwise than the one of the record loses one
pair in a hundred, and so more than half of eight practically never."""

RELEASE_PAUSES = (0.1, 1.0, 5.0)
"""Seconds before each attempt to free the memory of an evaluator that has left. The messages that
it answered keep it until their outcomes are stored, which takes milliseconds unless Redis is slow.
An attempt looks through all objects, for some tenths of a second."""

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
        self._activity: State | None = None
        """The thread's work at this moment; None while it waits."""
        self._left: Callable[[], object] = lambda: None
        """Returns the evaluator that has left, as long as something keeps it."""
        self._thread: threading.Thread | None = None

    def open(self) -> Swap:
        """Load the first model, which has to pass its self-test.

        Raises:
            SelfTestError: It does not.
            SQEHRMError: It cannot be used.
        """
        model = self._read_model(None)
        evaluator = model.open()
        with _closed_on_error(evaluator):
            self._check(evaluator)
        self._swap, self._records = Swap(evaluator), model.records
        self._metrics.serves(self._swap)
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

    def activity(self) -> State:
        """Say what this worker does beside taking messages, or instead of it."""
        resting = State.SERVING if self._failure is None else State.PAUSED
        return self._activity or resting

    @contextlib.contextmanager
    def _doing(self, activity: State) -> Iterator[None]:
        self._activity = activity
        try:
            yield
        finally:
            self._activity = None

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
                self._free()
            elif self._signalled and not self._stopping:
                self._signalled = False
                self._reload(None)
                self._free()

    def _reload(self, checkpoint: str | None) -> Reloaded:
        """Let another model serve if it can be used, and say how it went."""
        try:
            with self._doing(State.RELOADING):
                reloaded = self._try(checkpoint)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old one serves on
            serving, reason = in_short(self._swap.checkpoint), _in_one_line(error)
            logger.error("reload refused, %s serves on: %s", serving, reason)  # noqa: TRY400
            reloaded = Reloaded(Reload.REFUSED, serving, reason=reason)
        self._metrics.reload(reloaded.result)
        return reloaded

    def _try(self, checkpoint: str | None) -> Reloaded:
        before = in_short(self._swap.checkpoint)
        model = self._read_model(checkpoint)
        serving = (self._swap.checkpoint.digest, self._records)
        if (model.digest, model.records) == serving:
            logger.info("reload: already serving %s", before)
            return Reloaded(Reload.ALREADY_SERVING, before)
        logger.info("reload: loading %s beside %s", in_short(model), before)
        evaluator = model.open()
        began = time.monotonic()
        with _closed_on_error(evaluator), self._swap.trial(evaluator):
            self._check(evaluator)
            old, self._records = self._swap.take_over(), model.records
        waited = time.monotonic() - began
        self._left = weakref.ref(old)
        old.close()
        self._metrics.serves(evaluator)
        self._pass()
        now = in_short(model)
        logger.info(
            "reloaded: %s serves instead of %s, after %.2f s for what that had and for the test",
            *(now, before, waited),
        )
        return Reloaded(Reload.RELOADED, now, before=before)

    def _free(self) -> None:
        """Free what was loaded and does not serve, or no longer."""
        pause = threading.Event()
        had_left = self._left() is not None
        # What was loaded was kept out of the search for cycles, and is in some.
        gc.unfreeze()
        for seconds in RELEASE_PAUSES:
            pause.wait(seconds)
            gc.collect()
            if self._left() is None:
                # Its last message may have let it go only after that search: what it alone kept,
                # and is in cycles, would be frozen.
                gc.collect()
                gc.freeze()
                break
        devices.release(self._device)
        if had_left:
            state = "is free" if self._left() is None else "is still in use"
            logger.info("reload: the memory of the checkpoint before %s", state)

    def _test_if_idle(self) -> None:
        """Test the model that serves, if no message waits for it."""
        if len(self._hand):
            return
        try:
            with self._doing(State.TESTING):
                failure = self._test(self._swap.serving)
        except EngineClosedError:
            return  # the worker ends
        except SQEHRMError as error:
            self._on_broken(str(error))
            return
        if failure is None:
            self._pass()
        elif self._failure is None:
            logger.error("%s: it takes no messages", failure)
            self._failure = failure
            self._hand.is_paused = True

    def _pass(self) -> None:
        """Note that the model that serves gives right answers."""
        if self._failure is not None:
            logger.info("the known pairs are solved again: this worker takes messages")
            self._failure = None
            self._hand.is_paused = False

    def _check(self, evaluator: Evaluator) -> None:
        """Raise `SelfTestError` if an evaluator's answers cannot be trusted."""
        failure = self._test(evaluator)
        if failure is not None:
            raise SelfTestError(failure)

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


@contextlib.contextmanager
def _closed_on_error(evaluator: Evaluator) -> Iterator[None]:
    try:
        yield
    except BaseException:
        evaluator.close()
        raise


def _in_one_line(error: Exception) -> str:
    """Word an error of loading in one line; one that no one foresaw with its kind."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, SQEHRMError) else f"unexpected {type(error).__name__}: {text}"
