"""The published JSON Schemas agree with the models."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from schemas import MessageRejected, parse_message
from schemas.publish import MODELS, PUBLISHED, json_schema, publish
from tests.support.stubs import message, verdict
from worker.cli.commands.schema import command

MESSAGE = {
    "schema_version": 1,
    "message_id": "m",
    "agent_id": "a",
    "prompt": "p",
    "completion": "c",
}
EXAMPLE = Converter(ConversionConfig()).convert("test the agent", "ok", 3).model_dump(mode="json")
REJECTION = {"message_id": None, "reason": "not_json", "detail": "not JSON"}
LETTER = {
    **REJECTION,
    "body": "AA==",
    "queue": "sqe.evaluate",
    "worker": "host:1",
    "rejected_at": "2026-01-31T12:00:00Z",
}
VERDICT = json.loads(verdict(message()).model_dump_json())


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((PUBLISHED / f"{name}.schema.json").read_text()))


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize("name", MODELS)
def test_published_files_match_the_models(name: str) -> None:
    assert (PUBLISHED / f"{name}.schema.json").read_text() == json_schema(name)


@pytest.mark.parametrize("name", MODELS)
def test_published_files_are_valid_draft_2020_12(name: str) -> None:
    schema = json.loads((PUBLISHED / f"{name}.schema.json").read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def test_no_other_file_is_published() -> None:
    assert {file.name for file in PUBLISHED.iterdir()} == {f"{name}.schema.json" for name in MODELS}


@pytest.mark.parametrize(
    ("content", "valid"),
    [
        (MESSAGE, True),
        ({**MESSAGE, "puzzle_id": None, "category": None, "created_at": None, "tags": None}, True),
        ({**MESSAGE, "puzzle_id": 0, "category": "other", "tags": {}}, True),
        ({**MESSAGE, "puzzle_id": 10**30, "created_at": "2026-01-31T12:00:00Z"}, True),
        ({**MESSAGE, "message_id": "x" * 128, "tags": {"k" * 64: "v" * 256}}, True),
        ({**MESSAGE, "prompt": "\u0000\n"}, True),
        *((without(MESSAGE, name), False) for name in MESSAGE),
        ({**MESSAGE, "extra": 1}, False),
        ({**MESSAGE, "schema_version": 2}, False),
        ({**MESSAGE, "schema_version": "1"}, False),
        ({**MESSAGE, "schema_version": True}, False),
        ({**MESSAGE, "message_id": ""}, False),
        ({**MESSAGE, "message_id": "a b"}, False),
        ({**MESSAGE, "message_id": "é"}, False),
        ({**MESSAGE, "message_id": "x" * 129}, False),
        ({**MESSAGE, "agent_id": 1}, False),
        ({**MESSAGE, "prompt": ""}, False),
        ({**MESSAGE, "completion": None}, False),
        ({**MESSAGE, "puzzle_id": -1}, False),
        ({**MESSAGE, "puzzle_id": True}, False),
        ({**MESSAGE, "puzzle_id": "1"}, False),
        ({**MESSAGE, "puzzle_id": 1.5}, False),
        ({**MESSAGE, "category": "CI_CD"}, False),
        ({**MESSAGE, "created_at": 1_769_860_800}, False),
        ({**MESSAGE, "tags": []}, False),
        ({**MESSAGE, "tags": {"": ""}}, False),
        ({**MESSAGE, "tags": {"k" * 65: ""}}, False),
        ({**MESSAGE, "tags": {"k": "v" * 257}}, False),
        ({**MESSAGE, "tags": {"k": 1}}, False),
        ({**MESSAGE, "tags": {str(index): "" for index in range(17)}}, False),
        ([], False),
        ("text", False),
        (None, False),
    ],
)
def test_schema_and_parser_agree_on_messages(content: Any, *, valid: bool) -> None:  # noqa: ANN401
    assert validator("sqe_message").is_valid(content) is valid
    assert _parses(content) is valid


def _parses(content: Any) -> bool:  # noqa: ANN401
    try:
        parse_message(json.dumps(content))
    except MessageRejected:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "content", "valid"),
    [
        ("hrm_example", EXAMPLE, True),
        *(("hrm_example", without(EXAMPLE, field), False) for field in EXAMPLE),
        ("hrm_example", {**EXAMPLE, "extra": 1}, False),
        ("hrm_example", {**EXAMPLE, "input_sequence": [0]}, False),
        ("hrm_example", {**EXAMPLE, "input_sequence": [0, 65_536]}, False),
        ("hrm_example", {**EXAMPLE, "input_sequence": [0, -1]}, False),
        ("hrm_example", {**EXAMPLE, "target_sequence": [0] * 6400}, True),
        ("hrm_example", {**EXAMPLE, "target_sequence": [0] * 6401}, False),
        ("hrm_example", {**EXAMPLE, "solution_steps": [{"action": 1, "state": None}]}, True),
        ("hrm_example", {**EXAMPLE, "solution_steps": [{"action": 2, "state": None}]}, False),
        ("hrm_example", {**EXAMPLE, "solution_steps": [{"action": 0, "state": 1}]}, False),
        ("rejection", REJECTION, True),
        *(("rejection", without(REJECTION, field), False) for field in REJECTION),
        ("rejection", {**REJECTION, "reason": "other"}, False),
        ("dead_letter", LETTER, True),
        *(("dead_letter", without(LETTER, field), False) for field in LETTER),
        ("verdict", VERDICT, True),
        *(("verdict", without(VERDICT, field), field == "dtype") for field in VERDICT),
        ("verdict", {**VERDICT, "failure_pattern": "shifted"}, True),
        ("verdict", {**VERDICT, "failure_pattern": "other"}, False),
        ("verdict", {**VERDICT, "token_accuracy": 1.1}, False),
        ("verdict", {**VERDICT, "act_steps": 0}, False),
        ("verdict", {**VERDICT, "halted_by": None}, False),
        ("verdict", {**VERDICT, "timings": {**VERDICT["timings"], "total": -1}}, False),
        ("verdict", {**VERDICT, "timings": {**VERDICT["timings"], "queue": None}}, True),
    ],
)
def test_schema_and_model_agree(name: str, content: dict[str, Any], *, valid: bool) -> None:
    assert validator(name).is_valid(content) is valid
    try:
        MODELS[name].model_validate_json(json.dumps(content))
    except ValidationError:
        assert not valid
    else:
        assert valid


def test_publish_writes_every_schema(tmp_path: Path) -> None:
    files = publish(tmp_path / "new" / "folder")
    assert [file.name for file in files] == [f"{name}.schema.json" for name in MODELS]
    for file in files:
        assert file.read_bytes() == (PUBLISHED / file.name).read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_command_prints_a_schema(name: str) -> None:
    result = CliRunner().invoke(command, [name])
    assert (result.exit_code, result.stdout) == (0, json_schema(name))


def test_the_command_writes_all_schemas_into_a_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--output", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout.split() == [str(tmp_path / f"{name}.schema.json") for name in MODELS]
    assert all((tmp_path / f"{name}.schema.json").is_file() for name in MODELS)


@pytest.mark.parametrize("arguments", [[], ["verdict", "--output", "folder"], ["verdicts"]])
def test_the_command_demands_either_a_name_or_a_folder(arguments: list[str]) -> None:
    assert CliRunner().invoke(command, arguments).exit_code == 2
