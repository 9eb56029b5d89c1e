"""`sqe-hrm submit`: a file in, verdicts out."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas import Verdict
from tests.support.processes import DEADLINE, REAL, STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.contract import KEEP_RESULT
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tests.conftest import Site


def start(folder: Path, redis_url: str | None, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [REAL[0], "submit", *options],
        cwd=folder,
        env={**os.environ, "SQE_REDIS_URL": redis_url or ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs, maybe these tests, with SIGINT ignored.
        preexec_fn=obey_sigint,  # noqa: PLW1509 - no other thread runs here
    )


def obey_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def submit(folder: Path, redis_url: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    return end(start(folder, redis_url, *options))


def read(output: Path) -> list[dict[str, object]]:
    """The outcomes in an output, of which every line is whole."""
    text = output.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def write_pairs(file: Path, *prompts: str) -> None:
    file.write_text("".join(f'{{"prompt": "{p}", "completion": "done"}}\n' for p in prompts))


@pytest.fixture
def stub(tmp_path: Path, redis_url: str) -> "Iterator[Worker]":
    """A worker that does what a prompt says, on `redis_url`."""
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        yield worker.wait_until_ready()


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
    assert ["line 7", "puzzle_out_of_range"] in reports
    outcomes = read(tmp_path / "out.jsonl")
    assert {each.pop("line"): str(each["message_id"])[:5] for each in outcomes} == {
        1: "file-",
        3: "line-",
        7: "line-",
        8: "file-",
    }
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
        "resumed": 0,
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
    items = [json.loads(each) for each in store.lrange(queue, 0, -1)]
    assert [each["headers"][KEEP_RESULT] for each in items] == [0, 0, 0]


@pytest.mark.usefixtures("stub")
def test_an_id_that_comes_twice_in_a_file_has_two_outcomes(redis_url: str, tmp_path: Path) -> None:
    lines = [message(prompt, message_id="twice") for prompt in ("solve", "fail", "solve")]
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(each.model_dump_json(exclude_none=True) + "\n" for each in lines))
    done = submit(tmp_path, redis_url, "--data-path", str(file), "--output", "out.jsonl")
    assert done.stdout == "3 sent, 3 verdicts, 2 solved, 0 rejected, 0 bad lines\n"
    outcomes = read(tmp_path / "out.jsonl")
    assert [(each["line"], each["solved"]) for each in outcomes] == [
        (1, True),
        (2, False),
        (3, True),
    ]


def test_a_second_run_repeats_the_ids_of_bare_pairs(
    redis_url: str, stub: Worker, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, "solve", "solve", "fail")
    ids = []
    for output in ("first.jsonl", "second.jsonl", "second.jsonl"):
        done = submit(tmp_path, redis_url, "--data-path", str(file), "--output", output)
        assert done.returncode == 0, done.stderr
        ids.append({each["line"]: each["message_id"] for each in read(tmp_path / output)})
        # Only training asks for this field.
        file.write_text(file.read_text().replace('"done"}', '"done", "alternative": true}'))
    assert ids == [ids[0]] * 3
    assert len(set(ids[0].values())) == 3, "equal lines are two messages"
    assert stub.total("evaluations_total") == 3, "each counts once"


def held_back(tmp_path: Path) -> Path:
    """A file whose first 256 lines are answered, and the last one once `tmp_path`/gate exists."""
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, *["solve"] * 256, f"hold {tmp_path / 'gate'}")
    return file


@pytest.mark.usefixtures("stub")
def test_what_was_received_before_a_timeout_is_kept_and_continued(
    redis_url: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    options = ("--data-path", str(held_back(tmp_path)), "--output", "out.jsonl")
    done = submit(tmp_path, redis_url, *options, "--timeout", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "incomplete: 256 outcomes of 257 messages, all in out.jsonl: --resume continues there",
        (
            "sqe-hrm: error: no outcome for 1 messages, and no progress for 1 s: "
            "0 tasks wait in the queues and workers have 1; give a longer --timeout"
        ),
    ]
    first = read(output)
    assert sorted(int(str(each["line"])) for each in first) == list(range(1, 257))

    (tmp_path / "gate").touch()
    output.write_text(output.read_text().replace('"checkpoint":"stub"', '"checkpoint":"old"'))
    done = submit(tmp_path, redis_url, *options, "--resume", "--strict")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "1 sent, 256 resumed, 257 verdicts, 257 solved, 0 rejected, 0 bad lines\n"
    )
    assert done.stderr.splitlines() == [
        "out.jsonl has 256 outcomes: their lines are not sent again",
        "verdicts of several checkpoints: old (0123456789ab), stub (0123456789ab)",
    ]
    assert [each["line"] for each in read(output)] == [*(each["line"] for each in first), 257]

    # Without --resume, everything is sent and written anew.
    done = submit(tmp_path, redis_url, *options)
    assert done.stdout == "257 sent, 257 verdicts, 257 solved, 0 rejected, 0 bad lines\n"
    assert {each["checkpoint"] for each in read(output)} == {"stub"}


@pytest.mark.usefixtures("stub")
def test_what_was_received_before_ctrl_c_is_kept(redis_url: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    file = str(held_back(tmp_path))
    process = start(tmp_path, redis_url, "--data-path", file, "--output", "out.jsonl")
    wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") == 256, "outcomes")
    process.send_signal(signal.SIGINT)
    done = end(process)
    assert done.returncode == 130
    assert done.stderr.splitlines()[0] == (
        "incomplete: 256 outcomes of 257 messages, all in out.jsonl: --resume continues there"
    )
    assert len(read(output)) == 256


def test_without_a_worker_it_gives_up_after_the_timeout(redis_url: str, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", "solve")
    output = tmp_path / "out.jsonl"
    output.write_text("of an earlier run\n")
    done = submit(
        tmp_path,
        redis_url,
        *("--data-path", "pairs.jsonl", "--output", "out.jsonl", "--timeout", "0.2"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "incomplete: 0 outcomes of 1 messages, out.jsonl is unchanged",
        (
            "sqe-hrm: error: no outcome for 1 messages, and no progress for 0.2 s: "
            "1 tasks wait in the queues: is a worker running?"
        ),
    ]
    assert output.read_text() == "of an earlier run\n"


def test_it_does_not_give_up_while_a_queue_gets_shorter(
    redis_url: str, store: "redis.Redis", tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", *["solve"] * 256 * 8)

    def take() -> None:
        while store.rpop(BACKFILL_QUEUE):
            time.sleep(0.5)

    began = time.monotonic()
    process = start(tmp_path, redis_url, "--data-path", "pairs.jsonl", "--timeout", "1.5")
    wait_for(lambda: store.llen(BACKFILL_QUEUE) == 8, "everything sent")
    worker = threading.Thread(target=take)
    worker.start()
    done = end(process)
    worker.join()
    assert done.returncode == 1
    assert time.monotonic() - began > 0.5 * 7 + 1.5
    assert "no task is left: see the dead letters" in done.stderr


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("a note\n", "out.jsonl:1: not a line's outcome: give the --output of an earlier run"),
        (
            '{"line": 1, "message_id": "another", "reason": "not_json", "detail": "why"}\n',
            "line 1 has the outcome of another message: give the --data-path and --agent-id",
        ),
    ],
)
def test_another_file_is_not_continued(
    redis_url: str, store: "redis.Redis", tmp_path: Path, there: str, said: str
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", "solve")
    (tmp_path / "out.jsonl").write_text(there)
    done = submit(
        tmp_path, redis_url, *("--data-path", "pairs.jsonl", "--output", "out.jsonl", "--resume")
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert (tmp_path / "out.jsonl").read_text() == there
    assert not store.exists(BACKFILL_QUEUE)


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
