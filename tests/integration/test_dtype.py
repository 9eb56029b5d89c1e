"""A real worker takes int8 if its processor has products of it, and otherwise says why not."""

import re
from datetime import date
from pathlib import Path

import pytest

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.checkpoint.precision import (
    Differences,
    PrecisionCheck,
    RecordedPrecision,
    write_precision,
)
from hrm.data.config import ConversionConfig
from hrm.kernels import without_int8
from hrm.model.network import HRM
from tests.support.networks import tiny
from tests.support.processes import REAL, Worker
from tests.support.stubs import message
from worker.client import Client

WIDE = tiny(
    hidden_size=256,
    num_heads=8,
    puzzle_emb_ndim=256,
    num_puzzle_identifiers=1000,
    seq_len=100,
    halt_max_steps=2,
)
"""A network whose levels are far faster in int8, on any processor that has it."""

NOTHING = Differences(predictions=0, act_steps=0, verdicts=0, patterns_beyond=0)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A checkpoint of which int8 is recorded to change nothing."""
    folder = tmp_path / "checkpoints" / "wide"
    save_checkpoint(folder, HRM(WIDE).state_dict(), WIDE, ConversionConfig(), None)
    check = PrecisionCheck(
        dtype="int8",
        computed_by="hand",
        date=date(2026, 12, 1),
        version="0",
        max_steps=NOTHING,
        q=NOTHING,
    )
    digest = load_checkpoint(folder).digest
    precision = RecordedPrecision(
        digest=digest, halt_max_steps=2, pairs=4, changed=9, checks=(check,)
    )
    write_precision(folder, precision)
    return folder


@pytest.mark.parametrize("asked", ["auto", "int8"])
def test_a_worker_computes_in_int8_or_says_why_not(
    recorded: Path, tmp_path: Path, redis_url: str, client: Client, asked: str
) -> None:
    missing = without_int8(HRM(WIDE))
    options = ("--checkpoint", "wide", "--dtype", asked)
    with Worker.start(
        REAL, tmp_path, redis_url, *options, checkpoint_dir=recorded.parent
    ) as worker:
        worker.wait_until_ready()
        verdict = client.result(client.submit(message()))
        (info,) = (name for name in worker.metrics() if name.startswith("engine_info"))
        log = worker.log.read_text()
    said = re.findall(r" (?:INFO|WARNING) (dtype .*)", log)
    if asked == "int8":
        dtype = "float32" if missing else "int8"
        assert said == ([f"dtype float32, not int8: {missing}"] if missing else [])
    elif missing:
        usual = re.fullmatch(r"dtype (\w+): .*", said[0])
        assert usual is not None
        dtype = usual[1]
        assert said[1:] == [f"dtype auto stays with {dtype}, not int8: {missing}"]
    else:
        dtype = "int8"
        assert re.fullmatch(
            r"dtype auto chose int8: levels run [\d.]+ times as fast in int8 as in \w+ here; "
            r"no prediction, halting step or verdict changes \(4 pairs and 9 changed "
            r"completions, by hand\)",
            said[1],
        )
    assert f"{{dtype={dtype}}}" in info
    assert verdict.dtype == dtype
