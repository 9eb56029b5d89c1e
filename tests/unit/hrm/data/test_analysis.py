"""`hrm.data.analysis` and `sqe-hrm analyze` give the figures that were counted by hand."""

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hrm.data.analysis import DatasetStatistics, analyze_file
from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine
from schemas import Category, Difficulty, RejectionReason
from worker.cli.commands.analyze import command

MESSAGES = [
    # 0 1 2 11 | 0 3 3 4 11
    {"prompt": "Test agent", "completion": "data database security"},
    # 0 9 11 | 98 times 3 between 0 and 11; 12 + 495 characters
    {"prompt": "deployment..", "completion": "data " * 99},
    # 0 10 11 | 0 11, and a category of its own
    {"prompt": "monitoring", "completion": " ", "category": "other"},
]


def lines(*contents: object) -> bytes:
    return b"".join(json.dumps(content).encode() + b"\n" for content in contents)


def examples() -> list[object]:
    converter = Converter(ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX))
    return [
        json.loads(converter.convert_to_json(m["prompt"], m["completion"], None, index))
        for index, m in enumerate(MESSAGES)
    ]


def analyze(data: bytes) -> tuple[DatasetStatistics, list[RefusedLine]]:
    refused: list[RefusedLine] = []
    statistics = analyze_file(
        io.BytesIO(data), Converter(ConversionConfig()), on_refused=refused.append
    )
    return statistics, refused


def test_messages_are_counted() -> None:
    statistics, refused = analyze(lines(*MESSAGES))
    assert (statistics.messages, statistics.examples, refused) == (3, 0, [])
    assert statistics.inputs.mean_characters == pytest.approx((10 + 12 + 10) / 3)
    assert statistics.inputs.mean_tokens == pytest.approx((4 + 3 + 3) / 3)
    assert statistics.inputs.token_counts == (3, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 3)
    assert (statistics.inputs.cut, statistics.inputs.full) == (0, 0)
    assert statistics.targets.mean_characters == pytest.approx((22 + 495 + 1) / 3)
    assert statistics.targets.mean_tokens == pytest.approx((5 + 100 + 2) / 3)
    assert statistics.targets.token_counts == (3, 0, 0, 100, 1, 0, 0, 0, 0, 0, 0, 3)
    assert (statistics.targets.cut, statistics.targets.full) == (1, 1)
    assert statistics.difficulties == {
        Difficulty.EASY: 2,
        Difficulty.MEDIUM: 1,
        Difficulty.HARD: 0,
    }
    assert {name: count for name, count in statistics.categories.items() if count} == {
        Category.CI_CD: 1,
        Category.OTHER: 2,
    }


def test_converted_examples_give_the_same_figures_except_cuts_and_categories() -> None:
    of_messages, _ = analyze(lines(*MESSAGES))
    of_examples, refused = analyze(lines(*examples()))
    assert (of_examples.messages, of_examples.examples, refused) == (0, 3, [])
    assert of_examples.inputs == of_messages.inputs
    assert of_examples.targets == of_messages.targets.model_copy(update={"cut": 0})
    assert of_examples.difficulties == of_messages.difficulties
    assert not any(of_examples.categories.values())


def test_a_sequence_that_just_fits_is_full_and_not_cut() -> None:
    statistics, _ = analyze(lines({"prompt": "data " * 98, "completion": "c"}))
    assert (statistics.inputs.cut, statistics.inputs.full) == (0, 1)


def test_refused_lines_are_counted_by_reason_and_reported_by_number() -> None:
    broken = {**examples()[0], "input_sequence": [0, 12, 11]}  # type: ignore[dict-item]
    data = b"\n" + lines(broken, {"prompt": "input_sequence"}, MESSAGES[0]) + b'{"input_sequence"'
    statistics, refused = analyze(data)
    assert statistics.messages == 1
    assert statistics.refused == {
        RejectionReason.INVALID_VALUE: 1,
        RejectionReason.MISSING_FIELD: 1,
        RejectionReason.NOT_JSON: 1,
    }
    assert [(line.number, line.reason.value) for line in refused] == [
        (2, "invalid_value"),
        (3, "missing_field"),
        (5, "not_json"),
    ]
    assert "field 'input_sequence': token 12, but conversion 1 has 12" in refused[0].detail


def test_a_message_may_mention_the_keys_of_an_example() -> None:
    statistics, refused = analyze(lines({"prompt": "input_sequence", "completion": "c"}))
    assert (statistics.messages, refused) == (1, [])


def test_an_empty_file_has_no_means() -> None:
    statistics, _ = analyze(b"")
    assert statistics.targets.mean_tokens is None
    assert statistics.targets.mean_characters is None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def test_the_command_prints_means_with_three_digits(path: Path) -> None:
    path.write_bytes(lines(*MESSAGES))
    result = CliRunner().invoke(command, ["--data-path", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [row.split() for row in result.stdout.splitlines()]
    assert ["input", "10.7", "3.33", "0", "0", "3"] in rows
    assert ["target", "173", "35.7", "1", "1", "3"] in rows
    assert ["medium", "1", "33.3", "%", "████"] in rows
    assert ["3", "data", "0", "0.0", "%", "100", "93.5", "%", "████████"] in rows
    assert "unknown" not in result.stdout


def test_the_command_names_the_figures_that_converted_examples_lack(path: Path) -> None:
    path.write_bytes(lines(*examples()))
    result = CliRunner().invoke(command, ["--data-path", str(path)])
    rows = [row.split() for row in result.stdout.splitlines()]
    assert ["target", "173", "35.7", "unknown", "1", "3"] in rows
    assert "unknown: an example has none" in result.stdout


def test_the_command_prints_an_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    result = CliRunner().invoke(command, ["--data-path", str(path)])
    assert result.exit_code == 0
    assert ["messages", "0"] in [row.split() for row in result.stdout.splitlines()]


def test_the_command_prints_json_and_reports_lines_on_stderr(path: Path) -> None:
    path.write_bytes(b"oops\n" + lines(*MESSAGES))
    result = CliRunner().invoke(command, ["--data-path", str(path), "--json"])
    assert result.exit_code == 0
    assert result.stderr.startswith(f"{path}:1: not_json: ")
    statistics = DatasetStatistics.model_validate_json(result.stdout)
    assert statistics == analyze(path.read_bytes())[0]


def test_the_word_hash_can_be_chosen(path: Path) -> None:
    path.write_bytes(lines({"prompt": "hello", "completion": "hello"}))
    result = CliRunner().invoke(
        command, ["--data-path", str(path), "--word-hash", "sha256", "--json"]
    )
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # by sha256sum
    counts = json.loads(result.stdout)["inputs"]["token_counts"]
    assert counts[int(digest, 16) % 9 + 1] == 1


# Tasks.


def prompt_of(service: str, **fields: object) -> dict[str, object]:
    return {"prompt": f"Plan a test of the {service} service", "completion": "c", **fields}


def test_named_tasks_are_counted_and_others_are_found() -> None:
    contents = [prompt_of(f"s{number} x", task="own") for number in range(7)]
    contents += [prompt_of(f"s{number}") for number in range(5)] * 2
    contents += [prompt_of("s", puzzle_id=number) for number in range(9)]
    contents += [{"prompt": f"word{number} alone", "completion": "c"} for number in range(9)]
    statistics, _ = analyze(lines(*contents, *examples()))
    assert statistics.tasks == {"own": 7}
    (found,) = [each for each in statistics.found_tasks if each.prompts < 9]
    assert found.model_dump() == {"template": "plan a test of the … service", "prompts": 5}


def test_the_screen_shows_tasks(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(lines(*(prompt_of(f"s{number}") for number in range(5)), MESSAGES[0]))
    shown = CliRunner().invoke(command, ["--data-path", str(data)]).stdout
    assert "found: plan a test of the … service" in shown
    data.write_bytes(lines(*MESSAGES))
    assert "none is named" in CliRunner().invoke(command, ["--data-path", str(data)]).stdout
