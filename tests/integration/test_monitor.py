"""The monitor as a process, beside workers, over HTTP."""

import re
import signal
import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.support.processes import ROOT, STUB, Worker, wait_for
from tests.support.servers import server
from tests.support.stubs import message
from worker.broker.contract import CANARY_AGENT
from worker.broker.keys import LIVE_QUEUE
from worker.client import BACKFILL_QUEUE, Client

MONITOR = (sys.executable, "-m", "worker", "monitor")

QUEUE = "queue_messages{queue=sqe.evaluate}{state=ready}"
OLDEST = "queue_oldest_seconds{queue=sqe.evaluate}"
CANARY = "canary_total{outcome=%s}"


def is_at_least(monitor: Worker, name: str, value: float) -> bool:
    return monitor.metrics()[name] >= value


def agents(monitor: Worker) -> dict[str, float]:
    return {
        name.removeprefix("agent_evaluations_total"): value
        for name, value in monitor.metrics().items()
        if name.startswith("agent_evaluations_total") and value
    }


def start(
    folder: Path, redis_url: str, *options: str, **env: object
) -> AbstractContextManager[Worker]:
    settings = {"canary_seconds": 0, **env}
    return Worker.start(MONITOR, folder, redis_url, *options, **settings)


def test_agents_are_counted_once_whatever_is_killed_and_started_again(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    held = tmp_path / "go"
    of_tester = "{agent=tester}{category=other}{known=true}{outcome=%s}"
    expected = {of_tester % "solved": 21, of_tester % "unsolved": 1}
    with start(tmp_path, redis_url) as monitor:
        with Worker.start(STUB, tmp_path, redis_url, visibility_timeout=1) as worker:
            ids = client.submit_many([message(f"hold {held}"), *(message() for _ in range(20))])
            list(client.results(ids[1:]))
            worker.signal(signal.SIGKILL)
        held.touch()
        with Worker.start(STUB, tmp_path, redis_url, visibility_timeout=1) as worker:
            ids += [client.submit(message("fail"))]
            list(client.results(ids))
            # The worker that is alive answered some of them again, and counted those apart.
            wait_for(lambda: agents(monitor) == expected, "counted")
            client.submit_many([message() for _ in range(3)], queue=BACKFILL_QUEUE)
            wait_for(lambda: worker.total("evaluations_total") >= 5, "a backfill")
        monitor.signal(signal.SIGKILL)
    with start(tmp_path, redis_url) as monitor:
        monitor.wait_until_ready()
        assert agents(monitor) == expected
        monitor.signal(signal.SIGTERM)
        assert monitor.wait() == 0


def test_canaries_are_checked_and_are_in_no_figure_of_an_agent(
    redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "canaries.jsonl"
    file.write_text(
        '{"prompt": "solve", "completion": "c"}\n{"prompt": "fail", "completion": "c"}\n'
    )
    with (
        start(tmp_path, redis_url, "--canary", str(file), canary_seconds=0.2) as monitor,
        Worker.start(STUB, tmp_path, redis_url) as worker,
    ):
        for outcome in ("solved", "unproven"):
            wait_for(partial(is_at_least, monitor, CANARY % outcome, 2), outcome)
        lanes = {
            sample.labels["lane"]: sample.value
            for sample in worker.scrape().samples
            if sample.name == "sqe_hrm_evaluations_total" and sample.value
        }
        assert lanes.keys() == {"canary"}
        assert worker.total("failures_total") == 0
        assert agents(monitor) == {}
        # Whoever claims to be one is an agent.
        with Client(redis_url) as agent:
            false = message("fail").model_copy(update={"agent_id": CANARY_AGENT})
            agent.result(agent.submit(false))
        named = f"{{agent={CANARY_AGENT}}}{{category=other}}{{known=true}}{{outcome=unsolved}}"
        wait_for(lambda: agents(monitor) == {named: 1}, "counted as an agent's")
        assert worker.total("failures_total") == 1


def test_queues_show_while_no_worker_is_there(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    with start(tmp_path, redis_url) as monitor:
        client.submit_many([message() for _ in range(7)])
        wait_for(lambda: monitor.metrics()[QUEUE] == 7, "counted")
        before = monitor.metrics()[OLDEST]
        wait_for(lambda: monitor.metrics()[OLDEST] > before, "older")


def test_a_scrape_does_not_wait_for_a_redis_that_hangs(tmp_path: Path) -> None:
    durations: list[float] = []

    def scrape() -> dict[str, float]:
        started = time.monotonic()
        metrics = monitor.metrics()
        durations.append(time.monotonic() - started)
        return metrics

    with server(tmp_path) as running, start(tmp_path, running.url) as monitor:
        monitor.wait_until_ready()
        running.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        while (metrics := scrape())["redis_up"]:
            assert QUEUE in metrics
        assert time.monotonic() - stopped > 5, "a pause of some seconds shows nowhere"
        assert QUEUE not in metrics
        status, reason = monitor.get("/readyz")
        assert (status, reason) == (503, "no reply from Redis for 10 s\n")
        assert monitor.get("/healthz")[0] == 200
        # The median, since this machine may be busy; a wait for Redis would be in each.
        assert sorted(durations)[len(durations) // 2] < 0.3
        running.signal(signal.SIGCONT)
        wait_for(lambda: scrape()["redis_up"] == 1, "read again")
        monitor.wait_until_ready()


def test_a_canary_waits_for_workers_without_company(
    store: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    for _ in range(2):
        with start(tmp_path, redis_url, "--checkpoint", "sqe-demo", canary_seconds=0.1) as monitor:
            wait_for(lambda: store.llen(LIVE_QUEUE) == 1, "sent")
            wait_for(lambda: monitor.metrics()[QUEUE] == 1, "and only once")
    assert store.llen(LIVE_QUEUE) == 1


def test_a_checkpoint_is_asked_only_what_it_is_recorded_to_solve(
    redis_url: str, tmp_path: Path
) -> None:
    messages = ROOT / "checkpoints" / "sqe-demo" / "messages.jsonl"
    options = ("--checkpoint", "sqe-demo-600", "--canary", str(messages))
    with start(tmp_path, redis_url, *options, canary_seconds=60) as monitor:
        monitor.wait_until_ready()
        said = "82 canaries in .*; sqe-demo-600 is recorded to solve 82 of them"
        wait_for(lambda: re.search(said, monitor.log.read_text()) is not None, said)


def test_without_a_checkpoint_canaries_are_sent_all_the_same(
    redis_url: str, store: redis.Redis, tmp_path: Path
) -> None:
    (tmp_path / "canaries.jsonl").write_text('{"prompt": "solve", "completion": "c"}\n')
    options = ("--checkpoint", "none", "--canary", str(tmp_path / "canaries.jsonl"))
    with start(tmp_path, redis_url, *options, canary_seconds=0.1) as monitor:
        wait_for(lambda: store.llen(LIVE_QUEUE) == 1, "sent")
        assert "recorded to solve 0 of them" in monitor.log.read_text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--canary", "{}/none.jsonl"), "does not exist"),
        (("--canary", "{}/empty.jsonl"), "holds no message"),
        (("--metrics-port", "99999"), "SQE_MONITOR_PORT"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: tuple[str, str], problem: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    from worker.cli.commands.monitor import command  # noqa: PLC0415

    arguments = [each.format(tmp_path) for each in options]
    with pytest.raises(Exception, match=problem) as caught:
        command.main(arguments, standalone_mode=False)
    assert "\n" not in str(caught.value)
