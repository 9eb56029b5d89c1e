"""Evaluations of small files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hrm.checkpoint import load_checkpoint
from hrm.data.files import RefusedLine
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.run import evaluate_file
from hrm.inference.config import Inference
from schemas import Verdict


def opened(path: Path, **options: Any) -> Evaluator:  # noqa: ANN401
    checkpoint = load_checkpoint(path)
    inference = Inference(**{"slots": 2, "max_steps": 3, **options})
    predictor = inference.open(checkpoint, "cpu")
    return Evaluator(checkpoint, predictor, device="cpu", worker="host:1")


def jsonl(*lines: Any) -> io.BytesIO:  # noqa: ANN401
    return io.BytesIO(
        b"".join(
            (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n" for line in lines
        )
    )


def write_jsonl(path: Path, *lines: Any) -> Path:  # noqa: ANN401
    path.write_bytes(jsonl(*lines).getvalue())
    return path


class Run:
    """An evaluation, with its verdicts and refused lines."""

    def __init__(
        self,
        evaluator: Evaluator,
        source: io.BytesIO,
        on_verdict: Callable[[Verdict], None] = lambda _: None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.verdicts: list[Verdict] = []
        self.refused: list[RefusedLine] = []

        def note(verdict: Verdict) -> None:
            self.verdicts.append(verdict)
            on_verdict(verdict)

        self.report = evaluate_file(
            source, "data", evaluator, on_refused=self.refused.append, on_verdict=note, **options
        )
