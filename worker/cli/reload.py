"""`sqe-hrm worker reload`: running workers load another checkpoint, without a stop.

Knows who answered what; how workers are asked is in `worker.process.reload_requests`.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import redis
from rich.text import Text

from schemas import SQEHRMError
from worker.broker.contract import CONNECT_TIMEOUT
from worker.broker.urls import connections
from worker.cli.options import json_option
from worker.cli.tables.style import NOTHING, print_parts, table
from worker.client.address import namespace, redis_url

if TYPE_CHECKING:
    from worker.process.reload_requests import Answer

REFUSED = "refused"


@click.command("reload")
@click.option(
    "--checkpoint",
    help="Checkpoint name or path, which each worker looks up on its own disk.  "
    "[default: what each worker is set to]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds to wait for the workers' answers.",
)
@json_option
def reload(checkpoint: str | None, timeout: float, as_json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Let the running workers of this namespace load another checkpoint, without a stop.

    Each worker loads it beside the one that serves and tests it. Messages in hand are finished with
    the old one, the next ones go to the new one. A worker that cannot use it serves on as before.

    After a restart a worker serves what it is set to. So the best way is SQE_CHECKPOINT=current,
    `sqe-hrm checkpoint promote NEW`, and this command without --checkpoint.

    Exit status: 1 if a worker refuses, or does not answer in time.
    """
    # A client's install has no metrics server, and shows the help all the same.
    from worker.process.reload_requests import Asked  # noqa: PLC0415

    pool = connections(redis_url(), socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT)
    with redis.Redis.from_pool(pool) as client:
        asked = Asked(client, namespace(), checkpoint)
        answers = sorted(asked.answers(timeout), key=lambda answer: answer.worker)
    if as_json:
        listed = [answer.model_dump() for answer in answers]
        click.echo(json.dumps({"asked": asked.workers, "answers": listed}, indent=2))
    elif answers:
        _print(answers)
    _check(answers, asked.workers, timeout)


def _print(answers: Sequence["Answer"]) -> None:
    shown = table("worker", "result", "serves", "before", left=range(4))
    for answer in answers:
        result = answer.result.replace("_", " ")
        shown.add_row(answer.worker, result, answer.serving, answer.before or NOTHING)
    reasons = [f"{answer.worker}: {answer.reason}" for answer in answers if answer.reason]
    refused = Text("\n".join(reasons), no_wrap=True)
    print_parts(("", shown), *([("Refused", refused)] if reasons else []))


def _check(answers: Sequence["Answer"], workers: int, timeout: float) -> None:
    """Raise `SQEHRMError` if a worker refused, or did not answer."""
    refused = sum(answer.result == REFUSED for answer in answers)
    problems = [f"{refused} of {workers} refused and serve on as before"] if refused else []
    if missing := workers - len(answers):
        problems.append(
            f"{missing} of {workers} did not answer within {timeout:g} s: they may still be "
            "loading; their logs say how it ends"
        )
    if problems:
        raise SQEHRMError(f"workers: {', '.join(problems)}")
