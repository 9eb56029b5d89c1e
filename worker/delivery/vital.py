"""Threads without which a worker delivers nothing.

If one of them ended with an error, the others would wait for it, renew what is in hand and look
healthy. Knows threads; nothing of what they do.
"""

import logging
import threading
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Vital(threading.Thread):
    """A thread that has to live as long as its worker."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def watch(on_end: Callable[[str], object]) -> None:
    """Call `on_end` with the reason, in the thread itself, if an error ends a vital thread."""
    before = threading.excepthook

    def ended(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.thread, Vital):
            before(args)
            return
        # Not its message, which may quote what it was about.
        name = args.exc_type.__name__
        frames = "".join(traceback.format_tb(args.exc_traceback))
        logger.error("unexpected %s in the thread %s\n%s", name, args.thread.name, frames)
        on_end(f"its thread {args.thread.name} ended with an unexpected {name}: see the log above")

    threading.excepthook = ended
