"""The inputs that are read in this process: items, tasks, messages, files, outcomes, settings.

Knows the functions that read each of them, and which errors they may raise.
"""

import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.files import LineReader, RefusedLine, convert_file
from schemas import MessageRejected, Rejection, SQEHRMError, parse_message
from tests.fuzz import samples
from tests.fuzz.mutation import Mutator, written
from tests.fuzz.runs import Check, Input, is_proper, simply
from worker.broker.keys import LIVE_QUEUE, Namespace, NamespaceError
from worker.broker.urls import RedisURLError, check_redis_url, connections
from worker.cli.outcome_file import OutcomeFileError, read_outcomes
from worker.client.errors import UnreadableOutcome
from worker.client.outcomes import parse_all
from worker.delivery.envelope import Envelope, EnvelopeRejected, Refusal, read_item, reading
from worker.delivery.options import check_time
from worker.delivery.tasks import message_of, messages_of
from worker.settings import PREFIX, Settings, SettingsError

CONVERTERS = (Converter(ConversionConfig()), Converter(ConversionConfig(version=2)))

PASSWORD = "".join(letter + digit for letter, digit in zip("QWRTZPSDFG", "9182736450", strict=True))
"""A password of which an error may not show even three characters."""


def encoded(text: str) -> bytes:
    """The bytes of a text; lone surrogates become bytes that are not UTF-8."""
    return text.encode(errors="surrogatepass")


def refused(rejected: MessageRejected) -> str:
    """Check a rejection; returns its reason."""
    assert is_proper(rejected.detail), f"improper: {rejected.detail!a}"
    assert not (isinstance(rejected, EnvelopeRejected) and rejected.unexpected), rejected.detail
    return rejected.reason


def proper(error: SQEHRMError, reason: str) -> str:
    """Check an error's text; returns `reason`."""
    assert is_proper(str(error)), f"improper: {error!a}"
    return reason


def without_password(error: SQEHRMError, reason: str) -> str:
    """Check an error's text, which may show nothing of a password; returns `reason`."""
    assert shows_no_password(str(error)), error
    return proper(error, reason)


# Items and tasks.


def damaged_item(mutator: Mutator) -> bytes:
    made: bytes = mutator.one_of(
        mutator.noise,
        *[lambda: mutator.damage(samples.item(mutator))] * 9,
    )
    return made


def damaged_envelope(mutator: Mutator) -> bytes:
    task = samples.task(mutator)
    if mutator.random.random() < 0.2:
        task["body"] = mutator.text(task["body"])
    return encoded(written(mutator.value(task)))


def read(item: bytes) -> str | None:
    made = read_item(item, LIVE_QUEUE, "tag")
    if isinstance(made, Envelope):
        try:
            check_time(made.expires_at)
        except MessageRejected as rejected:
            return refused(rejected)
        return None
    assert isinstance(made, Refusal), made
    assert made.body == item
    reason = refused(made.rejected)
    Rejection(
        message_id=made.message_id, reason=made.rejected.reason, detail=made.rejected.detail
    ).model_dump_json().encode()
    return reason


def damaged_body(mutator: Mutator) -> bytes:
    """Arguments of a task: the form damaged, or messages in it."""
    messages: list[Any] = [
        samples.message(mutator) for _ in range(mutator.random.choice((1, 1, 0, 2, 300)))
    ]
    if mutator.random.random() < 0.5:
        messages = list(map(json.dumps, messages))
    arguments = samples.arguments(mutator, messages)
    text: str = mutator.one_of(
        lambda: written(mutator.value(arguments)),
        lambda: written(mutator.value(arguments)),
        lambda: json.dumps(arguments),
    )
    return mutator.damage(encoded(text)) if mutator.random.random() < 0.2 else encoded(text)


def take_messages(body: bytes) -> str | None:
    """Read the arguments as one message's and as a batch's, and evaluate what is in them."""
    reasons = []
    bodies = []
    for take in (lambda body: [message_of(body)], messages_of):
        try:
            with reading():
                bodies += take(body)
        except MessageRejected as rejected:
            reasons.append(refused(rejected))
    for each in bodies[:10]:
        if isinstance(each, str | dict):
            reason = evaluate(each)
            if reason is not None:
                reasons.append(reason)
    return None if bodies else reasons[0]


# Messages and files.


def damaged_message(mutator: Mutator) -> Any:  # noqa: ANN401
    """A message as text, as bytes or decoded."""
    text = written(mutator.value(samples.message(mutator)))
    if mutator.random.random() < 0.3:
        return mutator.damage(encoded(text))
    if mutator.random.random() < 0.5:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return encoded(text)


def evaluate(body: Any) -> str | None:  # noqa: ANN401
    """Parse a message, and convert it in both ways."""
    try:
        if isinstance(body, list | int | float | None):
            body = json.dumps(body)
        message = parse_message(body)
        for converter in CONVERTERS:
            example = converter.convert(message.prompt, message.completion, message.puzzle_id)
            assert len(converter.parts(example)) >= 1
    except MessageRejected as rejected:
        return refused(rejected)
    return None


def damaged_file(mutator: Mutator) -> bytes:
    """A file of a few lines, most of which are damaged."""
    lines: list[bytes] = [
        mutator.one_of(
            lambda: json.dumps(samples.line(mutator)).encode(),
            lambda: encoded(written(mutator.value(samples.line(mutator)))),
            lambda: mutator.damage(json.dumps(samples.line(mutator)).encode()),
        )
        for _ in mutator.some()
    ]
    return mutator.random.choice((b"\n", b"\r\n", b"\n\n")).join(lines)


READER = LineReader(max_message_bytes=100_000)


def read_lines(content: bytes) -> str | None:
    """Read the lines as each command does."""
    refusals = []
    for index, each in [
        *READER.messages(io.BytesIO(content)),
        *READER.contents(io.BytesIO(content)),
    ]:
        if isinstance(each, RefusedLine):
            assert is_proper(each.detail), f"improper: {each.detail!a}"
            assert each.number == index + 1
            refusals.append(each)
    sink = io.BytesIO()
    for converter in CONVERTERS:
        done = convert_file(
            io.BytesIO(content), sink, converter, reader=READER, on_refused=lambda _line: None
        )
        lines = sum(bool(line.strip()) for line in content.split(b"\n"))
        assert done.converted + done.refused.total() == lines
    return refusals[0].reason if refusals else None


def damaged_output(mutator: Mutator) -> bytes:
    """An output of `sqe-hrm submit` that is to be continued."""

    def line(number: int) -> bytes:
        sound = {"line": number, **samples.outcome(mutator)}
        made: bytes = mutator.one_of(
            lambda: json.dumps(sound).encode(),
            lambda: encoded(written(mutator.value(sound))),
            lambda: mutator.damage(json.dumps(sound).encode()),
        )
        return made

    return b"".join(line(number + 1) + b"\n" for number in mutator.some())


@contextmanager
def resume() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "outcomes.jsonl"

        def read_output(content: bytes) -> str | None:
            output.write_bytes(content)
            try:
                for number, _ in read_outcomes(output):
                    assert number >= 1
            except OutcomeFileError as error:
                return proper(error, "not an outcome")
            return None

        yield read_output


# Outcomes as a client reads them.


def damaged_outcome(mutator: Mutator) -> bytes | str:
    stored: dict[str, Any] = {
        "status": "SUCCESS",
        "result": samples.outcome(mutator),
        "traceback": None,
        "children": [],
        "date_done": "2026-01-31T12:00:00+00:00",
        "task_id": "m-1",
    }
    made: bytes | str = mutator.one_of(
        lambda: mutator.damage(json.dumps(stored).encode()),
        lambda: encoded(written(mutator.value(stored))),
        lambda: written(mutator.value(stored)),
        mutator.noise,
    )
    return made


def read_outcome(stored: bytes | str) -> str | None:
    try:
        parse_all(["m-1"], [stored])
    except UnreadableOutcome as error:
        return proper(error, "not an outcome")
    return None


# Settings and URLs.


VALUES = (
    *("5", "0", "-1", "1.5", "1e999", "nan", "", " 7 ", "9" * 5000, "true", "cpu", "cuda:0"),
    *("auto", "off", "a/b", "/", "x" * 5000, "\x00", "\udcff", "é", "redis://localhost:6379/0"),
)


def damaged_settings(mutator: Mutator) -> dict[str, str]:
    return {
        PREFIX + mutator.random.choice(list(Settings.model_fields)).upper(): mutator.one_of(
            lambda: mutator.random.choice(VALUES),
            lambda: mutator.text(mutator.random.choice(VALUES)),
            lambda: damaged_url(mutator)[0],
        )
        for _ in mutator.some()
    }


def read_settings(environ: dict[str, str]) -> str | None:
    try:
        settings = Settings.from_env(environ)
        Namespace(settings.namespace)
    except (SettingsError, NamespaceError) as error:
        return without_password(error, type(error).__name__)
    return None


URLS = (
    "redis://{login}host:6379/0",
    "redis://{login}host",
    "rediss://{login}host:6380/1?ssl_cert_reqs=required",
    "unix://{login}/run/redis.sock?db=1",
    "sentinel://{login}host:26379/0?master_name=main",
    "sentinel://{login}host:26379;sentinel://other:26379/0?master_name=main",
    "redis://{login}[::1]:6379/0?socket_timeout=5&health_check_interval=1",
)

SPECIAL = "/?#@:%[]\\ &=;,+\t\n\x00\"'%2F%40%zzé\udcff"


def damaged_url(mutator: Mutator) -> tuple[str, bool]:
    """A URL, and whether it is sound but for its password."""
    password = list(PASSWORD)
    for _ in range(mutator.random.choice((0, 1, 1, 2, 5))):
        password.insert(mutator.random.randrange(len(password) + 1), mutator.random.choice(SPECIAL))
    login = mutator.random.choice((":{}@", "agent:{}@", "{}@", ":{}")).format("".join(password))
    url = mutator.random.choice(URLS).format(login=login)
    is_sound = login.endswith("@") and login[0] in ":a"
    if mutator.random.random() < 0.5:
        return mutator.text(url), False
    return url, is_sound


def read_url(case: tuple[str, bool]) -> str | None:
    """Check a URL; one with a readable password has to lead where it was meant to lead."""
    url, is_sound = case
    try:
        check_redis_url(url)
        pool = connections(url)
    except RedisURLError as error:
        return without_password(error, "not a URL of Redis")
    if is_sound:
        shown = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if name not in {"username", "password", "connection_pool"}
        }
        assert shows_no_password(repr(shown)), shown
    return None


def shows_no_password(text: str) -> bool:
    return not any(PASSWORD[at : at + 3] in text for at in range(len(PASSWORD) - 2))


INPUTS = (
    Input("item", 32_000, damaged_item, simply(read)),
    Input("envelope", 25_000, damaged_envelope, simply(read)),
    Input("arguments", 10_000, damaged_body, simply(take_messages)),
    Input("message", 12_000, damaged_message, simply(evaluate)),
    Input("lines", 6_000, damaged_file, simply(read_lines)),
    Input("outcome", 6_000, damaged_outcome, simply(read_outcome)),
    Input("outcome file", 3_000, damaged_output, resume),
    Input("settings", 3_000, damaged_settings, simply(read_settings)),
    Input("Redis URL", 3_000, damaged_url, simply(read_url)),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the log of unexpected errors, which are findings, off the terminal."""
    logger = logging.getLogger("worker.delivery")
    logger.addHandler(nowhere := logging.NullHandler())
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(nowhere)
