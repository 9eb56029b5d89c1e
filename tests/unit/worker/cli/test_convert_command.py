"""Holds `sqe-hrm convert` to its words: files, exit status, what goes to stdout and stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm.data.config import ConversionConfig, PuzzlePolicy, WordHash
from hrm.data.conversion import Converter
from schemas import HRMExample, SQEHRMError, SQEMessage
from worker.cli.commands.convert import command

PAIR = {"prompt": "Test the agent", "completion": "hello end"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    message = SQEMessage.create(agent_id="a", prompt="p", completion="c", puzzle_id=7)
    path = tmp_path / "data.jsonl"
    path.write_text(
        f"{json.dumps(PAIR)}\n\noops\n{json.dumps(PAIR)}\n{message.model_dump_json()}\n"
        '{"prompt": "a"}\n'
    )
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def convert(data: Path, output: Path | str, *options: str) -> Result:
    return CliRunner().invoke(
        command, ["--data-path", str(data), "--output", str(output), *options]
    )


def read(text: str) -> list[HRMExample]:
    return [HRMExample.model_validate_json(line) for line in text.splitlines()]


def expected(config: ConversionConfig) -> list[HRMExample]:
    converter = Converter(config)
    return [
        converter.convert(PAIR["prompt"], PAIR["completion"], line_index=0),
        converter.convert(PAIR["prompt"], PAIR["completion"], line_index=3),
        converter.convert("p", "c", 7),
    ]


def test_puzzle_ids_count_blank_and_refused_lines(data: Path, output: Path) -> None:
    result = convert(data, output)
    assert result.exit_code == 0
    assert read(output.read_text()) == expected(
        ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX)
    )
    assert [example.puzzle_id for example in read(output.read_text())] == [0, 3, 7]


def test_options_configure_the_conversion(data: Path, output: Path) -> None:
    options = ["--word-hash", "sha256", "--puzzle-policy", "prompt_hash", "--puzzle-space", "97"]
    assert convert(data, output, *options).exit_code == 0
    assert read(output.read_text()) == expected(
        ConversionConfig(
            word_hash=WordHash.SHA256,
            puzzle_policy=PuzzlePolicy.PROMPT_HASH,
            puzzle_space=97,
        )
    )


def test_refused_lines_are_told_by_number_and_reason(data: Path, output: Path) -> None:
    told = convert(data, output).stderr.splitlines()
    assert [line.partition(": ")[0] for line in told] == [f"{data}:3", f"{data}:6"]
    assert [line.split(": ")[1] for line in told] == ["not_json", "missing_field"]


def test_the_summary_is_one_line(data: Path, output: Path) -> None:
    summary = convert(data, output).stdout
    assert summary.startswith("3 converted, 2 refused, ")
    assert summary.endswith(" messages/s\n")
    assert summary.count("\n") == 1


def test_the_summary_is_json_where_asked(data: Path, output: Path) -> None:
    summary = json.loads(convert(data, output, "--json").stdout)
    assert summary["converted"] == 3
    assert summary["refused"] == 2
    assert summary["refused_by_reason"] == {"missing_field": 1, "not_json": 1}
    assert summary["seconds"] > 0
    assert summary["messages_per_second"] > 0


def test_stdout_has_the_examples_and_nothing_else(data: Path) -> None:
    result = convert(data, "-")
    assert read(result.stdout) == expected(ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX))
    assert "3 converted" in result.stderr


def test_strict_fails_after_converting_the_rest(data: Path, output: Path) -> None:
    result = convert(data, output, "--strict")
    assert result.exit_code == 1
    assert isinstance(result.exception, SQEHRMError)
    assert ": 2 refused: " in str(result.exception)
    assert len(read(output.read_text())) == 3


def test_strict_is_content_with_sound_lines(tmp_path: Path, output: Path) -> None:
    data = tmp_path / "sound.jsonl"
    data.write_text(json.dumps(PAIR))
    assert convert(data, output, "--strict").exit_code == 0


def test_the_byte_limit_is_an_option(data: Path, output: Path) -> None:
    result = convert(data, output, "--max-message-bytes", "22")
    assert result.stderr.count("too_large") == 2
    assert len(read(output.read_text())) == 1


def test_a_folder_that_is_not_there_is_one_line(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "absent" / "out"
    result = convert(data, output)
    assert isinstance(result.exception, SQEHRMError)
    assert str(result.exception) == (
        f"cannot convert {data} to {output}: No such file or directory"
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--puzzle-space", "0"),
        ("--max-message-bytes", "0"),
        ("--word-hash", "crc32"),
        ("--puzzle-policy", "random"),
    ],
)
def test_a_wrong_option_is_a_wrong_call(data: Path, output: Path, options: tuple[str, str]) -> None:
    assert convert(data, output, *options).exit_code == 2
    assert not output.exists()


def test_data_that_is_not_there_is_a_wrong_call(tmp_path: Path, output: Path) -> None:
    assert convert(tmp_path / "absent", output).exit_code == 2


def test_the_data_is_not_its_own_output(data: Path) -> None:
    before = data.read_bytes()
    result = convert(data, data)
    assert result.exit_code == 2
    assert "name another file" in result.stderr
    assert data.read_bytes() == before


def test_neither_torch_nor_a_broker_is_imported() -> None:
    code = (
        "import sys, worker.cli.commands.convert, worker.cli.commands.analyze;"
        "print({'torch', 'celery', 'redis'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
