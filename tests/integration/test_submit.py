"""`sqe-hrm submit`: a file in, verdicts out."""

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas import Verdict
from tests.support.processes import DEADLINE, REAL
from tests.support.stubs import message
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE

if TYPE_CHECKING:
    import redis

    from tests.conftest import Site


def submit(folder: Path, redis_url: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REAL[0], "submit", *options],
        cwd=folder,
        env={**os.environ, "SQE_REDIS_URL": redis_url or ""},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two full messages, two bare pairs (one with an unknown puzzle), and three bad lines."""
    file = tmp_path / "mixed.jsonl"
    full = [message(message_id=f"file-{tmp_path.name[-20:]}-{n}") for n in range(2)]
    lines = [
        full[0].model_dump_json(),
        "not json",
        '{"prompt": "write tests", "completion": "done"}',
        "",
        '{"prompt": "write tests"}',
        '{"prompt": "", "completion": "done"}',
        '{"prompt": "plan", "completion": "done", "puzzle_id": 1000000}',
        full[1].model_dump_json(exclude_none=True),
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_every_line_ends_as_a_verdict_a_rejection_or_a_report(
    site: "Site", tmp_path: Path, mixed: Path
) -> None:
    done = submit(tmp_path, site.redis_url, "--data-path", str(mixed), "--output", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 sent, 3 verdicts, 0 solved, 1 rejected, 3 bad lines\n"
    reports = [line.split(": ")[:2] for line in done.stderr.splitlines()]
    assert ["line 2", "not_json"] in reports
    assert ["line 5", "missing_field"] in reports
    assert ["line 6", "empty_text"] in reports
    assert [reason for _, reason in reports].count("puzzle_out_of_range") == 1
    outcomes = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    verdicts = [
        Verdict.model_validate_json(json.dumps(each)) for each in outcomes if "reason" not in each
    ]
    assert len(outcomes) == 4
    assert {verdict.agent_id for verdict in verdicts} == {"tester", "file"}


def test_the_summary_is_one_json_object_for_machines_and_strict_fails(
    site: "Site", tmp_path: Path, mixed: Path
) -> None:
    done = submit(tmp_path, site.redis_url, "--data-path", str(mixed), "--json", "--strict")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "sent": 4,
        "verdicts": 3,
        "solved": 0,
        "rejected": 1,
        "bad_lines": 3,
    }


@pytest.mark.parametrize(
    ("options", "queue"),
    [((), BACKFILL_QUEUE), (("--queue", "live", "--agent-id", "planner"), LIVE_QUEUE)],
)
def test_without_waiting_the_messages_are_in_the_queue(
    redis_url: str, store: "redis.Redis", tmp_path: Path, options: tuple[str, ...], queue: str
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 600)
    done = submit(tmp_path, redis_url, "--data-path", str(file), "--no-wait", *options)
    assert (done.returncode, done.stdout) == (0, "600 sent, 0 bad lines\n")
    assert store.llen(queue) == 3, "in batches of 256"


def test_without_a_worker_it_gives_up_after_the_timeout(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    done = submit(tmp_path, redis_url, "--data-path", str(file), "--timeout", "0.2")
    assert done.returncode == 1
    assert "is a worker running?" in done.stderr
    assert done.stderr.startswith("sqe-hrm: error: no outcome for 1 messages")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--data-path", "nonesuch"), 2, "'nonesuch' does not exist"),
        (("--data-path", "pairs.jsonl"), 1, "no Redis is running: start `sqe-hrm worker`"),
        (("--data-path", "pairs.jsonl", "--no-wait", "--output", "x"), 2, "--no-wait returns"),
    ],
)
def test_a_call_that_cannot_work_says_why(
    tmp_path: Path, options: tuple[str, ...], status: int, said: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = submit(tmp_path, None, *options)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
