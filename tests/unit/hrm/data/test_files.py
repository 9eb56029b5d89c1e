"""`hrm.data.files` judges every line, needs little memory, and writes files atomically."""

import io
import json
import os
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.data.config import ConversionConfig, PuzzlePolicy, Task
from hrm.data.conversion import AcceptedPair, Converter
from hrm.data.files import (
    DEFAULT_READER,
    LineReader,
    RefusedLine,
    convert_file,
    replaced_file,
)
from schemas import Category, HRMExample, MessageRejected, RejectionReason, SQEMessage

MIB = 1024 * 1024
BY_LINE = ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX)

FULL = {
    "schema_version": 1,
    "message_id": "m-1",
    "agent_id": "agent",
    "prompt": "Test the agent",
    "completion": "End",
}
PAIR = {"prompt": "Test the agent", "completion": "End"}


def line(fields: object) -> bytes:
    return json.dumps(fields).encode()


def refusal(raw: bytes) -> RejectionReason:
    with pytest.raises(MessageRejected) as caught:
        DEFAULT_READER.message(raw)
    return caught.value.reason


def test_a_pair_is_read() -> None:
    fields = {**PAIR, "puzzle_id": 4, "category": "ci_cd"}
    assert DEFAULT_READER.message(line(fields)) == AcceptedPair(
        prompt="Test the agent", completion="End", puzzle_id=4, category=Category.CI_CD
    )


def test_a_pair_may_be_declared_an_alternative() -> None:
    raw = line({**PAIR, "alternative": True})
    assert DEFAULT_READER.message(raw) == AcceptedPair(**PAIR, alternative=True)
    small = LineReader(max_message_bytes=len(raw) - 1)  # the way without short cuts
    assert small.message(raw) == DEFAULT_READER.message(raw)
    with pytest.raises(MessageRejected, match=r"wrong_type: field 'alternative': .*true or false"):
        DEFAULT_READER.message(line({**PAIR, "alternative": 1}))
    assert refusal(line({**FULL, "alternative": True})) is RejectionReason.UNKNOWN_FIELD


def test_a_pair_may_name_its_task() -> None:
    assert DEFAULT_READER.message(line({**PAIR, "task": "plan"})).task == "plan"
    # By the same contract as a message, also on the way that long lines take.
    long = {**PAIR, "task": "plan", "completion": "\u00e9 " * 200_000}
    assert refusal(line({**PAIR, "task": "a plan"})) is RejectionReason.INVALID_VALUE
    assert refusal(line(long)) is RejectionReason.TOO_LARGE
    assert DEFAULT_READER.message(line({**FULL, "task": "plan"})).task == "plan"


def test_a_converted_file_has_the_rows_of_its_tasks() -> None:
    tasks = ConversionConfig(puzzle_policy=PuzzlePolicy.TASK, tasks=(Task(name="plan", row=1007),))
    sink = io.BytesIO()
    source = io.BytesIO(line({**PAIR, "task": "plan"}))
    convert_file(source, sink, Converter(tasks), on_refused=lambda each: pytest.fail(each.detail))
    assert json.loads(sink.getvalue())["puzzle_id"] == 1007


def test_conversion_ignores_alternative() -> None:
    written = []
    for fields in (PAIR, {**PAIR, "alternative": True}):
        sink = io.BytesIO()
        source = io.BytesIO(line(fields))
        assert convert_file(source, sink, Converter(BY_LINE), on_refused=print).converted == 1
        written.append(sink.getvalue())
    assert written[0] == written[1]


def test_a_full_message_is_read() -> None:
    assert DEFAULT_READER.message(line(FULL)) == SQEMessage.model_validate(FULL)


@pytest.mark.parametrize(
    "raw",
    [
        line({**PAIR, "prompt": "schema_version"}),
        b'{"prompt": "the key \\"schema_version", "completion": "End"}',
    ],
)
def test_a_pair_may_mention_the_schema_version(raw: bytes) -> None:
    assert DEFAULT_READER.message(raw) == AcceptedPair.model_validate_json(raw)


def test_an_escaped_key_is_the_same_key() -> None:
    raw = line(FULL).replace(b"schema_version", b"schema\\u005fversion")
    assert DEFAULT_READER.message(raw) == SQEMessage.model_validate(FULL)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"not json", RejectionReason.NOT_JSON),
        (b'{"prompt": "cut sh', RejectionReason.NOT_JSON),
        (b"[" * 10_000 + b"]" * 10_000, RejectionReason.TOO_DEEP),
        (b'{"prompt": "a", "completion": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "too_deep"),
        (b'{"prompt": "\xff", "completion": "b"}', RejectionReason.INVALID_UNICODE),
        (b'{"prompt": "\\ud800", "completion": "b"}', RejectionReason.INVALID_UNICODE),
        (b'{"prompt": "\xed\xa0\x80", "completion": "b"}', RejectionReason.INVALID_UNICODE),
        (b"[]", RejectionReason.NOT_A_MESSAGE),
        (b"null", RejectionReason.NOT_A_MESSAGE),
        (b'"text"', RejectionReason.NOT_A_MESSAGE),
        (line({"prompt": "a"}), RejectionReason.MISSING_FIELD),
        (line({}), RejectionReason.MISSING_FIELD),
        (line({**PAIR, "message_id": "m-1"}), RejectionReason.MISSING_FIELD),
        (line({**PAIR, "schema_version": 1}), RejectionReason.MISSING_FIELD),
        (line({**PAIR, "answer": "c"}), RejectionReason.UNKNOWN_FIELD),
        (line({**FULL, "answer": "c"}), RejectionReason.UNKNOWN_FIELD),
        (line({**PAIR, "prompt": ""}), RejectionReason.EMPTY_TEXT),
        (line({**FULL, "completion": ""}), RejectionReason.EMPTY_TEXT),
        (line({**PAIR, "prompt": 1}), RejectionReason.WRONG_TYPE),
        (line({**PAIR, "completion": None}), RejectionReason.WRONG_TYPE),
        (line({**PAIR, "puzzle_id": "1"}), RejectionReason.WRONG_TYPE),
        (line({**PAIR, "puzzle_id": True}), RejectionReason.WRONG_TYPE),
        (line({**PAIR, "puzzle_id": -1}), RejectionReason.INVALID_VALUE),
        (line({**FULL, "puzzle_id": -1}), RejectionReason.INVALID_VALUE),
        (line({**PAIR, "category": "cooking"}), RejectionReason.INVALID_VALUE),
        (line({**FULL, "schema_version": 2}), RejectionReason.UNSUPPORTED_VERSION),
        (line({**PAIR, "prompt": "x" * 262_144}), RejectionReason.TOO_LARGE),
        (line({**FULL, "prompt": "x" * 262_144}), RejectionReason.TOO_LARGE),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else None,
)
def test_a_bad_line_is_refused_with_its_reason(raw: bytes, reason: RejectionReason) -> None:
    assert refusal(raw) == reason


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(MessageRejected, match=r"'completion'.*add it"):
        DEFAULT_READER.message(line({"prompt": "a"}))


@pytest.mark.parametrize("prompt", ["x" * 262_141, "é" * 131_070, '"' * 262_141, "\0" * 262_141])
def test_texts_up_to_the_limit_are_accepted_however_they_are_escaped(prompt: str) -> None:
    assert DEFAULT_READER.message(line({**PAIR, "prompt": prompt})).prompt == prompt


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("ci_cd")
PAIR_FIELDS = st.dictionaries(
    st.sampled_from(["prompt", "completion", "puzzle_id", "category", "other"]),
    VALUES | st.lists(VALUES, max_size=2),
)


@given(PAIR_FIELDS)
def test_a_pair_is_judged_like_a_message_with_the_same_fields(changes: dict[str, object]) -> None:
    assert judged(line(PAIR | changes)) == judged(line(FULL | changes))


def judged(raw: bytes) -> tuple[object, ...]:
    try:
        message = DEFAULT_READER.message(raw)
    except MessageRejected as rejected:
        return (rejected.reason, rejected.detail)
    return (message.prompt, message.completion, message.puzzle_id, message.category)


def test_the_index_starts_at_zero_and_counts_blank_and_refused_lines() -> None:
    source = io.BytesIO(b"\n".join([line(PAIR), b"", b" \t\r", b"bad", line(FULL)]))
    contents = list(DEFAULT_READER.messages(source))
    assert [index for index, _ in contents] == [0, 3, 4]
    refused = contents[1][1]
    assert isinstance(refused, RefusedLine)
    assert (refused.number, refused.reason) == (4, RejectionReason.NOT_JSON)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n", b""])
def test_every_line_ending_is_accepted(ending: bytes) -> None:
    assert [index for index, _ in DEFAULT_READER.messages(io.BytesIO(line(PAIR) + ending))] == [0]


def test_an_empty_file_has_no_messages() -> None:
    assert list(DEFAULT_READER.messages(io.BytesIO())) == []


EXAMPLE = Converter(BY_LINE).convert("Test the agent", "End", 4)


def test_a_line_may_hold_a_message_a_pair_or_an_example() -> None:
    raw = [line(FULL), line(PAIR), EXAMPLE.model_dump_json().encode(), b"bad"]
    *contents, refused = (
        content for _, content in DEFAULT_READER.contents(io.BytesIO(b"\n".join(raw)))
    )
    assert contents == [
        DEFAULT_READER.message(line(FULL)),
        DEFAULT_READER.message(line(PAIR)),
        EXAMPLE,
    ]
    assert isinstance(refused, RefusedLine)
    assert refused.number == 4


def test_an_example_is_not_a_message() -> None:
    ((_, refused),) = DEFAULT_READER.messages(io.BytesIO(EXAMPLE.model_dump_json().encode()))
    assert isinstance(refused, RefusedLine)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n" + line(PAIR)])
@pytest.mark.parametrize("beginning", [b"x", b" ", EXAMPLE.model_dump_json().encode()])
def test_an_absurdly_long_line_is_one_refused_line(beginning: bytes, ending: bytes) -> None:
    source = io.BytesIO(line(PAIR) + b"\n" + beginning + b" " * (5 * MIB) + b"x" + ending)
    contents = list(LineReader(1000).contents(source))
    refused = contents[1][1]
    assert isinstance(refused, RefusedLine)
    assert (refused.number, refused.reason) == (2, RejectionReason.TOO_LARGE)
    assert [index for index, _ in contents] == ([0, 1, 2] if len(ending) > 1 else [0, 1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": st.text(min_size=1), "completion": st.text(min_size=1)},
            optional={"puzzle_id": st.integers(0, 10**6)},
        )
        | st.none()
    )
)
def test_a_file_is_converted_like_each_of_its_messages(
    pairs: list[dict[str, object] | None],
) -> None:
    source = io.BytesIO(b"".join((line(pair) if pair else b"oops") + b"\n" for pair in pairs))
    sink = io.BytesIO()
    refused: list[RefusedLine] = []
    converter = Converter(BY_LINE)
    result = convert_file(source, sink, converter, on_refused=refused.append)
    expected = [
        converter.convert(**pair, line_index=index)  # type: ignore[arg-type]
        for index, pair in enumerate(pairs)
        if pair
    ]
    examples = [HRMExample.model_validate_json(raw) for raw in sink.getvalue().splitlines()]
    assert examples == expected
    assert [refusal.number for refusal in refused] == [
        number for number, pair in enumerate(pairs, 1) if not pair
    ]
    assert result.converted == len(expected)
    assert result.refused.total() == len(refused)


def test_a_large_file_with_one_absurd_line_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        for raw in large_file():
            file.write(raw)
    assert path.stat().st_size > 30 * MIB
    converter = Converter(BY_LINE)
    tracemalloc.start()
    with path.open("rb") as source, (tmp_path / "out").open("wb") as sink:
        result = convert_file(source, sink, converter, on_refused=lambda _: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (result.converted, dict(result.refused)) == (4_000, {RejectionReason.TOO_LARGE: 1})
    # The longest line that is held has 2.1 MiB, and the cached words take some more.
    assert peak < 8 * MIB


def large_file() -> Iterator[bytes]:
    for number in range(4_000):
        words = " ".join(f"word{number * 10 + n}" for n in range(300))
        yield line({"prompt": "Test", "completion": words}) + b"\n"
        if number == 2_000:
            for _ in range(20):
                yield b"x" * MIB
            yield b"\n"


def test_a_file_is_replaced_on_success(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with replaced_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_run_leaves_the_earlier_file(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "out"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with replaced_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [child.read_bytes() for child in tmp_path.iterdir()] == ([before] if before else [])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    with replaced_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_device_is_written_in_place() -> None:
    with replaced_file(Path(os.devnull)) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
