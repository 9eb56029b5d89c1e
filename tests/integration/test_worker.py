"""Agents, a real Redis and a real worker: every message has one outcome, and all counts agree."""

import json
import os
import random
import re
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas import MessageRejected, Rejection, RejectionReason, SQEMessage, Verdict
from tests.support.processes import DEADLINE, REAL, ROOT, wait_for
from tests.support.stubs import message
from worker.broker.app import EVALUATE, EVALUATE_BATCH, create_app
from worker.broker.keys import COUNTED, DEAD_LETTERS, QUEUES, UNACKED, queue_lists, result
from worker.broker.streams import read_failures
from worker.client import ResultTimeout
from worker.telemetry.scrape import read_families

if TYPE_CHECKING:
    from tests.conftest import Site

BROKEN = (
    ("not json", RejectionReason.NOT_JSON),
    ("[]", RejectionReason.NOT_A_MESSAGE),
    ('{"schema_version": 1}', RejectionReason.MISSING_FIELD),
    (message(message_id="far", puzzle_id=10**6).model_dump_json(), "puzzle_out_of_range"),
)


def words(random_: random.Random) -> SQEMessage:
    text = " ".join(random_.choices(["test", "the", "agent", "deploys", "data", "ünïcode"], k=12))
    return SQEMessage.create(agent_id="tester", prompt=text, completion=text[::-1])


def start_in_vain(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REAL, "--metrics-port", "0", *options],
        cwd=folder,
        env={**os.environ, "SQE_REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def all_done(site: "Site") -> bool:
    lists = [key for queue in QUEUES for key in queue_lists(queue)]
    return not site.store.exists(UNACKED, *lists)


def test_a_thousand_messages_each_end_as_one_verdict_or_one_dead_letter(site: "Site") -> None:
    random_ = random.Random(0)
    evaluated, rejected = site.worker.total("evaluations_total"), site.worker.metrics()
    timed = site.worker.total("end_to_end_seconds_count")
    letters = site.store.xlen(DEAD_LETTERS)
    app = create_app(site.redis_url)
    # Half are sent one by one, half in batches as other producers send them; 5 % are malformed.
    sound = [words(random_) for _ in range(950)]
    malformed = [random_.choice(BROKEN) for _ in range(50)]
    for each in sound[:475]:
        site.client.submit(each)
    for text, _ in malformed[:25]:
        app.send_task(EVALUATE, args=[text], queue="sqe.evaluate", ignore_result=True)
    bodies = [each.model_dump_json() for each in sound[475:]] + [text for text, _ in malformed[25:]]
    random_.shuffle(bodies)
    for start in range(0, len(bodies), 100):
        batch = bodies[start : start + 100]
        app.send_task(EVALUATE_BATCH, args=[batch], queue="sqe.backfill", ignore_result=True)

    outcomes = list(site.client.results(each.message_id for each in sound))
    assert all(isinstance(outcome, Verdict) for outcome in outcomes)
    assert Counter(outcome.message_id for outcome in outcomes) == Counter(
        each.message_id for each in sound
    )
    wait_for(lambda: all_done(site), "everything acknowledged")
    assert site.store.xlen(DEAD_LETTERS) - letters == 50
    metrics = site.worker.metrics()
    assert site.worker.total("evaluations_total") - evaluated == 950
    for reason, count in Counter(str(reason) for _, reason in malformed).items():
        name = f"rejected_total{{reason={reason}}}"
        assert metrics[name] - rejected[name] == count
    assert metrics["duplicates_total"] == rejected["duplicates_total"]
    assert site.worker.total("end_to_end_seconds_count") - timed == 950


def test_the_page_of_metrics_is_true_of_a_worker(site: "Site") -> None:
    page = (ROOT / "deploy" / "METRICS.md").read_text()
    families = read_families(site.worker.url, DEADLINE)
    own = [family for family in families if family.name.startswith("sqe_hrm_")]
    assert len(own) > 40
    for family in own:
        name = family.name.removeprefix("sqe_hrm_")
        (row,) = re.findall(rf"^\| `{name}(?:_total)?` \|.*", page, re.MULTILINE)
        assert f"| {family.type} |" in row
        assert f"| {family.documentation} |" in row
        for label in {label for sample in family.samples for label in sample.labels} - {"le"}:
            assert f"`{label}`" in row
    assert not [each for family in families for each in family.samples if "_created" in each.name]


def test_a_verdict_names_its_message_checkpoint_and_device(site: "Site") -> None:
    sent = message("Write a test plan for the login page", tags={"run": "7"})
    verdict = site.client.result(site.client.submit(sent))
    assert (verdict.message_id, verdict.agent_id) == (sent.message_id, "tester")
    assert (verdict.checkpoint, verdict.device, verdict.act_steps) == ("tiny", "cpu", 2)
    assert f"checkpoint_info{{checkpoint=tiny}}{{digest={verdict.checkpoint_digest}}}" in (
        site.worker.metrics()
    )
    assert verdict.timings.queue is not None
    assert verdict.timings.total >= verdict.timings.queue + verdict.timings.inference


def test_an_equal_prompt_is_answered_from_the_cache_and_counted_as_any_other(site: "Site") -> None:
    prompt = "A prompt that nobody else sends"
    before, evaluated = site.worker.metrics(), site.worker.total("evaluations_total")
    verdicts = [site.client.result(site.client.submit(message(prompt))) for _ in range(3)]
    after = site.worker.metrics()
    for result_, more in (("hit", 2), ("miss", 1)):
        name = f"prediction_cache_total{{result={result_}}}"
        assert after[name] - before[name] == more
    assert site.worker.total("evaluations_total") == evaluated + 3
    assert len({verdict.predicted_sequence for verdict in verdicts}) == 1
    assert len({verdict.message_id for verdict in verdicts}) == 3
    assert after["engine_steps_total"] > before["engine_steps_total"]


def test_an_unsolved_message_is_in_the_failure_stream_once(site: "Site") -> None:
    # From an agent without failures before: others have so many that not all are kept.
    sent = SQEMessage.create(agent_id="without-failures", prompt="solve", completion="done")
    for _ in range(2):
        verdict = site.client.result(site.client.submit(sent))
        assert not verdict.solved, "random weights know nothing"
        wait_for(lambda: all_done(site), "acknowledged")
    (failure,) = [each for each in read_failures(site.store) if each.message == sent]
    assert failure.verdict.message_id == sent.message_id
    assert failure.verdict.failure_pattern == verdict.failure_pattern


def test_a_message_delivered_twice_is_answered_twice_and_counted_once(site: "Site") -> None:
    sent = message()
    before = site.worker.metrics()["duplicates_total"]
    evaluated = site.worker.total("evaluations_total")
    site.client.submit(sent)
    site.client.submit_many([sent])
    wait_for(lambda: site.worker.metrics()["duplicates_total"] == before + 1, "the second one")
    assert site.worker.total("evaluations_total") == evaluated + 1
    assert site.client.result(sent.message_id).message_id == sent.message_id


def test_a_refused_task_delivered_twice_is_one_dead_letter(site: "Site") -> None:
    letters, before = site.store.xlen(DEAD_LETTERS), site.worker.metrics()["duplicates_total"]
    site.client.submit(message())
    for task_id in ("again-1", "again-1", "again-2"):
        create_app(site.redis_url).send_task(EVALUATE, args=["no json"], task_id=task_id)
    wait_for(lambda: site.worker.metrics()["duplicates_total"] == before + 1, "the second one")
    wait_for(lambda: all_done(site), "acknowledged")
    assert site.store.xlen(DEAD_LETTERS) == letters + 2


def test_celerys_own_result_objects_get_the_outcomes(site: "Site") -> None:
    app = create_app(site.redis_url)
    good = message()
    verdict = app.send_task(EVALUATE, args=[good.model_dump(mode="json")]).get(timeout=30)
    assert verdict["message_id"] == good.message_id
    outcomes = app.send_task(
        EVALUATE_BATCH, kwargs={"messages": [good.model_dump_json(), "no json"]}
    ).get(timeout=30)
    assert Verdict.model_validate_json(json.dumps(outcomes[0])).message_id == good.message_id
    assert Rejection.model_validate_json(json.dumps(outcomes[1])).reason == "not_json"
    app.close()


def test_a_refused_message_raises_its_reason_at_the_client(site: "Site") -> None:
    sent = message(puzzle_id=10**6)
    with pytest.raises(MessageRejected, match="puzzle") as caught:
        site.client.result(site.client.submit(sent))
    assert caught.value.reason is RejectionReason.PUZZLE_OUT_OF_RANGE


def test_results_come_as_they_arrive_and_a_timeout_names_what_is_missing(site: "Site") -> None:
    sent = site.client.submit(message())
    with pytest.raises(ResultTimeout, match=r"no outcome for 1 messages \(such as nobody"):  # noqa: PT012
        found = [each.message_id for each in site.client.results(["nobody", sent], timeout=0.5)]
        assert found == [sent]


def test_polling_returns_what_has_arrived_and_does_not_wait(site: "Site") -> None:
    sent = site.client.submit(message())
    verdict = site.client.result(sent)
    assert site.client.poll([sent, *map(str, range(1000))]) == {sent: verdict}
    assert site.client.poll([]) == {}


def test_outcomes_expire(site: "Site") -> None:
    sent = site.client.submit(message())
    site.client.result(sent)
    assert 0 < site.store.ttl(result(sent)) <= 3600
    markers = site.store.keys(f"{COUNTED}:*")
    assert markers
    # A slice and its sets expire a day after the last of its twelve hours.
    assert all(86_400 <= site.store.ttl(each) <= 1.5 * 86_400 + 1 for each in markers)


def test_a_sender_chooses_how_long_its_outcomes_are_kept(site: "Site") -> None:
    sent = [
        site.client.submit(message(), keep_result=100),
        *site.client.submit_many([message(), message()], keep_result=100),
    ]
    good = message()
    with create_app(site.redis_url) as app:
        task = app.send_task(
            EVALUATE, args=[good.model_dump_json()], headers={"sqe_keep_result": 100}
        )
        task.get(timeout=30)
    assert len(list(site.client.results(sent))) == 3
    for each in (*sent, good.message_id, task.id):
        assert 0 < site.store.ttl(result(each)) <= 100


def test_the_log_says_where_the_metrics_are_and_what_is_evaluated_how(site: "Site") -> None:
    log = site.worker.log.read_text()
    assert f"serving {site.worker.url}/metrics" in log
    assert "checkpoint tiny (" in log
    assert (
        "halting auto chose fixed steps: no figures recorded, and sqe-hrm checkpoint record" in log
    )
    assert re.search(r" on cpu with \d+ slots, dtype (float32|bfloat16), halting max_steps, ", log)
    assert "cache of 100000, queues sqe.evaluate, sqe.backfill" in log
    assert all(line[:2] == "20" for line in log.splitlines()), "one line per event"


@pytest.mark.parametrize(
    ("options", "status", "message_"),
    [
        (("--checkpoint", "nonesuch"), 1, "sqe-hrm: error: no checkpoint 'nonesuch'"),
        (("--device", "gpu"), 2, "device 'gpu': give cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), 1, "device 'cuda:99'"),
        (("--queues", "other"), 2, "no queue 'other'"),
        (("--slots", "0"), 1, "SQE_SLOTS: input should be greater"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, options: tuple[str, ...], status: int, message_: str
) -> None:
    done = start_in_vain(tmp_path, *options)
    assert done.returncode == status, done.stderr
    assert message_ in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--checkpoint nonesuch", "no checkpoint 'nonesuch' "),
        ("--checkpoints sqe-demo nonesuch", "no checkpoint 'nonesuch' "),
        ("--checkpoint .", ".: no weights in this folder"),
    ],
)
def test_a_worker_without_its_checkpoint_starts_nothing(
    tmp_path: Path, options: str, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [*REAL, *options.split(), "--metrics-port", str(taken.getsockname()[1])],
            cwd=tmp_path,
            env={**os.environ, "SQE_REDIS_URL": ""},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    # The metrics port, which is taken, would have been the error of a worker that opened it first.
    assert done.stderr.startswith(f"sqe-hrm: error: {said}")
    assert done.stderr.count("\n") == 1, "and not a line of log before it"
    assert not list(tmp_path.iterdir()), "no folder for a Redis"
