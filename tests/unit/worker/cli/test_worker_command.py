"""`sqe-hrm worker --devices`: what is refused, and what each worker gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner

from worker.cli.commands.worker import command
from worker.fleet import run as fleet
from worker.fleet.members import Member
from worker.fleet.supervisor import End
from worker.settings import Settings


@dataclass
class Calls:
    """Stands for a fleet, and notes what it was called with."""

    end: End = field(default_factory=lambda: End(0))
    kept: list[dict[str, Any]] = field(default_factory=list)

    def run(self, **arguments: Any) -> End:  # noqa: ANN401
        self.kept.append(arguments)
        return self.end


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(fleet, "run", calls.run)
    return calls


def call(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit status and the output of `sqe-hrm worker ARGUMENTS`."""
    environ = {"SQE_REDIS_URL": "redis://localhost:1/0", **(environ or {})}
    done = CliRunner().invoke(command, list(arguments), env=environ)
    return done.exit_code, done.output


def test_each_worker_gets_the_options_of_the_call_but_not_those_of_the_fleet(calls: Calls) -> None:
    options = ["--slots", "8", "--halting", "q", "--devices", "cpux2", "--metrics-port", "1234"]
    assert call([*options, "--queues=sqe.evaluate", "--threads", "3"]) == (0, "")
    (kept,) = calls.kept
    assert kept["members"] == (Member("cpu", 0), Member("cpu", 1))
    assert kept["redis_url"] == "redis://localhost:1/0"
    assert (kept["settings"].metrics_port, kept["settings"].threads) == (1234, 3)
    assert sorted(kept["options"]) == [
        "--halting=q",
        "--queues=sqe.evaluate",
        "--slots=8",
        "--threads=3",
    ]


def test_an_ensemble_is_passed_on(calls: Calls) -> None:
    options = ["--checkpoints", "sqe-demo", "sqe-demo-600", "--weights", "2", "0.5"]
    assert call(["--devices", "cpu", *options, "--strategy", "voting"]) == (0, "")
    (kept,) = calls.kept
    assert list(kept["options"]) == [
        "--checkpoints=sqe-demo",
        "--checkpoints=sqe-demo-600",
        "--weights=2.0",
        "--weights=0.5",
        "--strategy=voting",
    ]


def test_a_worker_reads_the_options_that_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(command, "callback", lambda **values: seen.update(values))
    options = ["--checkpoints=sqe-demo", "--checkpoints=sqe-demo-600", "--weights=2.0"]
    assert call([*options, "--weights=0.5", "--device", "cpu", "--metrics-port", "0"]) == (0, "")
    assert seen["checkpoints"] == ("sqe-demo", "sqe-demo-600")
    assert seen["weights"] == (2.0, 0.5)
    assert (seen["device"], seen["devices"], seen["metrics_port"]) == ("cpu", None, 0)


def test_the_setting_is_as_the_option(calls: Calls) -> None:
    assert call([], {"SQE_DEVICES": "cuda:0x4"}) == (0, "")
    assert len(calls.kept[0]["members"]) == 4


def test_the_status_and_the_reason_are_the_fleets(calls: Calls) -> None:
    calls.end = End(75, "no worker is left: cpu: given up")
    assert call(["--devices", "cpu"]) == (75, "sqe-hrm: error: no worker is left: cpu: given up\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--devices", "cpu", "--device", "cpu"], "give --device for one worker, or --devices"),
        (["--devices", "cpu;cpu"], "'cpu;cpu' is no device: give cpu, cuda:N or all"),
        (["--devices", ""], "'' is no device"),
        (["--devices", "cpu", "--queues", "mine"], "no queue 'mine'"),
        (["--devices", "cpu", "--weights", "1"], "are for --checkpoints"),
        (["--slots", "4", "reload"], "--slots before reload: its options follow its name"),
        (["reload", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["restart"], "No such command 'restart'"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_starts(
    calls: Calls, arguments: list[str], problem: str
) -> None:
    status, output = call(arguments)
    assert status == 2
    assert problem in output.splitlines()[-1]
    assert not calls.kept


def test_a_missing_checkpoint_is_refused_before_anything_starts(calls: Calls) -> None:
    assert call(["--devices", "cpu", "--checkpoint", "nonesuch"])[0] == 1
    assert not calls.kept


def test_a_worker_listens_on_loopback_and_has_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQE_DEVICES", "cpux2")
    monkeypatch.setenv("SQE_METRICS_HOST", "0.0.0.0")  # noqa: S104 - an address as any other here
    environ = fleet._environ("unix:///redis", Settings(), 3)
    ours = {name: value for name, value in environ.items() if name.startswith("SQE_")}
    assert ours == {
        "SQE_REDIS_URL": "unix:///redis",
        "SQE_METRICS_HOST": "127.0.0.1",
        "SQE_THREADS": "3",
    }


def test_a_given_number_of_threads_is_each_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQE_THREADS", "7")
    assert fleet._environ("unix:///redis", Settings(threads=7), 3)["SQE_THREADS"] == "7"
