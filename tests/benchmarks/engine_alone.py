"""An engine that always has enough to do, in a process of its own, so that it can be stopped.

For each line of its input, it prints how many examples it has answered.
"""

import sys
import threading
from concurrent.futures import Future
from contextlib import closing
from itertools import cycle
from pathlib import Path

from hrm.checkpoint import load_checkpoint
from hrm.inference.config import Inference
from hrm.inference.prediction import Prediction
from schemas import HaltedBy
from tests.benchmarks.setting import THREADS, known_examples


def main(path: str, device: str, slots: str, halting: str) -> None:
    checkpoint = load_checkpoint(Path(path))
    inference = Inference(halting=HaltedBy(halting), slots=int(slots), threads=THREADS)
    room, answered = threading.Semaphore(4 * int(slots)), 0

    def note(_: Future[Prediction]) -> None:
        nonlocal answered
        answered += 1
        room.release()

    with closing(inference.open(checkpoint, device)) as engine:

        def feed() -> None:
            for example in cycle(known_examples(checkpoint)):
                room.acquire()
                engine.submit(example).add_done_callback(note)

        threading.Thread(target=feed, daemon=True).start()
        for _ in sys.stdin:
            print(answered, flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main(*sys.argv[1:])
