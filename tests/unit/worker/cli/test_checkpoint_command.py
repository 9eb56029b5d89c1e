"""Holds `sqe-hrm checkpoint` to its words: what is printed, and what is refused in one line."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from hrm.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hrm.checkpoint.config import tensor_shapes
from hrm.data.conversion import Converter
from hrm.evaluation.measurement import measure_each
from hrm.model.batch import Messages, encode
from hrm.model.config import HRMConfig
from hrm.model.reference_loop import evaluate_batch
from hrm.training.examples import read_examples, training_record
from schemas import HaltedBy
from tests.support.checkpoints import RECORD, SHA256, state_of, store, write_config
from tests.support.checkpoints import TINY as SLOW
from tests.support.commands import refusal
from tests.support.evaluations import write_jsonl
from worker.cli.commands.checkpoint import command

TINY = SLOW.model_copy(update={"halt_max_steps": 3})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint folder, with `early` and `late` in it."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    early = state_of(TINY)
    late = {key: tensor.flip(0) for key, tensor in early.items()}
    for name, state in (("early", early), ("late", late)):
        save_checkpoint(folder / name, state, TINY, SHA256, RECORD)
    return folder


@pytest.fixture
def late_solves(folder: Path, tmp_path: Path) -> Path:
    """Converted examples whose targets are what `late` answers under `max_steps`."""
    checkpoint = load_checkpoint(folder / "late")
    converter = Converter(SHA256)
    examples = [converter.convert(f"run test {i}", "a b c d e", i % 5) for i in range(12)]
    output = evaluate_batch(checkpoint.build(), encode(examples, TINY), halting=HaltedBy.MAX_STEPS)
    path = tmp_path / "examples.jsonl"
    lines = [
        example.model_copy(update={"target_sequence": tuple(answer)}).model_dump_json()
        for example, answer in zip(examples, output.predictions.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def printed(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result
    # Paths are as long as they are.
    lines = [line.rstrip() for line in result.stdout.splitlines() if "/" not in line]
    assert max(map(len, lines)) <= 100
    return result.stdout


def printed_json(*arguments: str | Path) -> Any:  # noqa: ANN401
    return json.loads(call(*arguments, "--json").stdout)


def sentences(text: str) -> str:
    """`text` as if no line had been wrapped."""
    return " ".join(text.split())


def refused(*arguments: str | Path) -> str:
    return refusal(call(*arguments))


# Inspect.


def write_v9_zeros(path: Path) -> None:
    """A v9 checkpoint with a hole where its 107 MiB of zeros would be."""
    header: dict[str, Any] = {}
    end = 0
    for key, shape in tensor_shapes(HRMConfig()).items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[f"model.inner.{key}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def test_a_v9_checkpoint_prints_its_published_figures(folder: Path) -> None:
    write_v9_zeros(folder / "checkpoints_hrm_v9_optimized_step_7566.safetensors")
    text = printed("inspect", "step_7566")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "checkpoint step_7566"
    assert "parameters 27,990,018" in lines
    assert "puzzles 95,996" in lines
    assert "in memory 106.77 MiB as float32" in lines
    assert "on disk 106.78 MiB, weights 106.77 MiB" in lines
    assert "dtypes float32 27,990,018" in lines
    assert "training no record: no pair is known" in lines
    assert "puzzle embeddings 24,574,976 87.8 % 93.75 MiB" in lines
    assert "num_puzzle_identifiers 95996 tensor shapes" in lines
    assert "halt_max_steps 16 default" in lines
    assert "puzzle_emb.weights 95996x256 f32 0.0000 0.0000 0.0000 0.0000 100.0 % - -" in lines


def test_every_tensor_is_printed(folder: Path) -> None:
    text = printed("inspect", folder / "early")
    for key in tensor_shapes(TINY):
        level, _, rest = key.partition(".")
        assert (rest if level in {"H_level", "L_level"} else key) in text
    assert load_checkpoint(folder / "early").digest in text
    assert "2 known pairs" in text


def test_nan_and_infinite_weights_are_shown_where_loading_refuses_them(folder: Path) -> None:
    state = state_of(TINY)
    state["q_head.bias"] = torch.tensor([torch.nan, torch.inf])
    write_config(store(folder / "broken", state), model=TINY.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"q_head\.bias has NaN or infinite numbers"):
        load_checkpoint(folder / "broken")
    text = printed("inspect", "broken")
    assert "1 NaN and 1 infinite numbers: this checkpoint is refused where it would be" in text
    (line,) = (line for line in text.splitlines() if "q_head.bias" in line)
    assert line.split() == ["q_head.bias", "2", "f32", "-", "-", "-", "-", "0.0", "%", "1", "1"]
    assert printed_json("inspect", "broken")["tensors"]["q_head.bias"]["mean_absolute"] is None


def test_inspect_as_json_is_complete() -> None:
    content = printed_json("inspect", "early")
    assert content["name"] == "early"
    assert content["tensors"].keys() == tensor_shapes(TINY).keys()
    assert content["model"]["num_heads"] == {"value": 2, "source": "config.json"}
    assert content["training"]["pairs"] == 2


def test_an_unknown_checkpoint_is_refused_with_what_is_there(folder: Path) -> None:
    assert f"{folder} holds early/, late/; " in refused("inspect", "middle")


def test_a_shipped_checkpoint_is_found_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "checkpoint", "inspect", "sqe-demo", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "sqe-demo"
    assert "no checkpoint 'middle'" in refused("compare", "early", "middle")


# Record.


@pytest.fixture
def before(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint folder with a record of version 1, and the messages that it was trained on."""
    messages = write_jsonl(
        tmp_path / "messages.jsonl",
        {"prompt": "security", "completion": "agent test"},
        {"prompt": "data", "completion": "agent"},
    )
    record = training_record(read_examples(messages, Converter(SHA256)))
    first = record.model_copy(update={"format_version": 1, "accepted": None})
    save_checkpoint(folder / "before", state_of(TINY), TINY, SHA256, first)
    return folder / "before", messages


def test_a_record_of_version_1_is_completed(before: tuple[Path, Path]) -> None:
    checkpoint, messages = before
    others = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    digest = load_checkpoint(checkpoint).digest
    assert "no hashes of accepted texts: its record is of version 1 (see sqe-hrm checkpoint" in (
        printed("inspect", "before")
    )
    assert "precision   none recorded (see sqe-hrm checkpoint record)" in (
        printed("inspect", "before")
    )
    printed_lines = call("record", "before", "--data-path", messages).stdout.splitlines()
    first, second, third, *precision = printed_lines
    assert (
        first
        == f"{checkpoint / 'training_pairs.json'}: version 2, 2 pairs with their texts' hashes"
    )
    assert second.startswith(f"{checkpoint / 'figures.json'}: 2 messages measured, which support ")
    assert third == (
        f"{checkpoint / 'accepted.pairs'}: 2 accepted pairs as tokens, solved 0 under max_steps, "
        "0 under q"
    )
    loaded = load_checkpoint(checkpoint)
    assert loaded.precision is not None
    assert precision == [
        f"{checkpoint / 'precision.json'}: {check.dtype}: {loaded.precision.summary(check)}"
        for check in loaded.precision.checks
    ]
    assert [check.dtype for check in loaded.precision.checks] == ["bfloat16", "int8"]
    text = printed("inspect", "before")
    assert "precision   none" not in text
    assert "Differences from float32 (2 pairs and " in text
    for check in loaded.precision.checks:
        rows = (line.split() for line in text.splitlines())
        (row,) = (each for each in rows if each[:2] == [check.dtype, "q"])
        found = check.q
        assert row[2:6] == [
            f"{n:,}"
            for n in (found.predictions, found.act_steps, found.verdicts, found.patterns_beyond)
        ]
    assert loaded.digest == digest
    assert loaded.training == training_record(read_examples(messages, Converter(SHA256)))
    for name in ("config.json", "model.safetensors"):
        assert (checkpoint / name).read_bytes() == others[name]
    assert {file.name for file in checkpoint.iterdir()} == {
        *others,
        "accepted.pairs",
        "figures.json",
        "precision.json",
    }
    assert "accepted completions of 2 prompts, as hashes" in printed("inspect", "before")
    assert "pairs       2 accepted, as tokens: solved 0 under max_steps, 0 under q" in (
        printed("inspect", "before")
    )
    pairs = loaded.accepted_pairs()
    assert pairs is not None
    assert [each.example for each in pairs] == [
        each.example for each in read_examples(messages, Converter(SHA256))
    ]
    assert refused("record", "before", "--data-path", messages) == (
        "checkpoint before: its record is of version 2 and has figures, pairs and precision "
        "already: keep it"
    )


def test_missing_figures_are_measured_and_shown(before: tuple[Path, Path]) -> None:
    checkpoint, messages = before
    assert (
        "figures     none recorded, so workers run fixed steps (see sqe-hrm checkpoint record)"
        in printed("inspect", "before")
    )
    assert printed_json("inspect", "before")["figures"] is None
    assert printed_json("inspect", "before")["halting"] == "max_steps"
    call("record", "before", "--data-path", messages)
    completed = (checkpoint / "training_pairs.json").read_bytes()
    loaded = load_checkpoint(checkpoint)
    examples = [each.example for each in read_examples(messages, Converter(loaded.conversion))]
    whole = Messages.whole(encode(examples, loaded.config))
    text = printed("inspect", "before")
    assert "Recorded figures (" in text
    assert loaded.figures is not None
    for rule in HaltedBy:
        found, recorded = (
            measure_each(loaded.build(), whole, rule),
            loaded.figures.accepted.of(rule),
        )
        assert recorded.solved == found.correctness.solved.sum()
        assert recorded.tokens_right == found.correctness.correct.sum()
        assert recorded.mean_act_steps == found.act_steps.double().mean()
        assert recorded.q_right == found.q_right.sum()
        (row,) = (line.split() for line in text.splitlines() if f"accepted  {rule.value} " in line)
        assert row[2] == f"{recorded.solved}/2"
    assert loaded.figures.accepted.target_tokens == 4 + 3
    assert f"Workers choose {loaded.figures.evidence().reason}." in sentences(text)
    assert printed_json("inspect", "before")["figures"] == json.loads(
        (checkpoint / "figures.json").read_text()
    )
    # Nothing else is missing any more, so nothing else is written.
    (checkpoint / "figures.json").unlink()
    assert call("record", "before", "--data-path", messages).stdout.count("\n") == 1
    assert load_checkpoint(checkpoint).figures == loaded.figures
    assert (checkpoint / "training_pairs.json").read_bytes() == completed


def test_figures_of_replaced_weights_are_not_shown_but_measured_again(
    folder: Path, before: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, messages = before
    call("record", "before", "--data-path", messages)
    digest = load_checkpoint(checkpoint).digest
    (folder / "late" / "model.safetensors").replace(checkpoint / "model.safetensors")
    assert "none recorded" in printed("inspect", "before")
    assert "2 accepted, as tokens: unknown which are solved" in printed("inspect", "before")
    assert "ignored: its figures are of other weights" in caplog.text
    call("record", "before", "--data-path", messages)
    again = load_checkpoint(checkpoint)
    assert again.figures is not None
    assert again.figures.digest == again.digest != digest
    pairs = again.accepted_pairs()
    assert pairs is not None
    assert pairs.solved_with(again.digest) is not None


def test_figures_are_not_measured_on_other_completions(
    before: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, messages = before
    call("record", "before", "--data-path", messages)
    (checkpoint / "figures.json").unlink()
    # The same tokens, so that the counts are equal, for the other prompt.
    swapped = write_jsonl(
        tmp_path / "swapped.jsonl",
        {"prompt": "security", "completion": "agent"},
        {"prompt": "data", "completion": "agent test"},
    )
    assert refused("record", "before", "--data-path", swapped).startswith(
        f"{swapped}: line 1: another completion than the recorded one: give the file as it was"
    )
    assert not (checkpoint / "figures.json").exists()


def test_a_record_is_not_completed_from_another_file(before: tuple[Path, Path]) -> None:
    checkpoint, messages = before
    unchanged = (checkpoint / "training_pairs.json").read_bytes()
    with messages.open("a") as file:
        file.write('{"prompt": "deploy", "completion": "agent"}\n')
    assert refused("record", "before", "--data-path", messages).startswith(
        f"{messages}: line 3: not among the recorded training pairs: give the file that"
    )
    assert (checkpoint / "training_pairs.json").read_bytes() == unchanged


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    before: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, messages = before
    monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (checkpoint, os.W_OK))
    monkeypatch.setattr("worker.cli.commands.checkpoint.measure_accepted", None)
    unchanged = (checkpoint / "training_pairs.json").read_bytes()
    assert refused("record", "before", "--data-path", messages) == (
        f"{checkpoint}: cannot be written: copy the checkpoint to a folder of your own"
    )
    assert (checkpoint / "training_pairs.json").read_bytes() == unchanged


def test_a_checkpoint_without_record_gets_none(folder: Path, before: tuple[Path, Path]) -> None:
    save_checkpoint(folder / "bare", state_of(TINY), TINY, SHA256, None)
    assert refused("record", "bare", "--data-path", before[1]).startswith(
        "checkpoint bare has no record of its training pairs to check "
    )
    assert "no hashes of accepted texts: it has no record" in printed("inspect", "bare")


# Compare.


def test_without_data_there_is_no_recommendation() -> None:
    text = sentences(printed("compare", "early", "late"))
    assert "early → late" in text
    assert "Not converged: a tensor moved " in text
    assert "no recommendation: weights alone do not tell which checkpoint is better" in text
    assert "give --data-path FILE" in text
    content = printed_json("compare", "early", "late")
    assert (content["data"], content["measured"]) == (None, [])
    assert [one["recommended"] for one in content["recommendations"]] == [None]


def test_with_data_the_recommendation_is_what_was_measured(late_solves: Path) -> None:
    arguments = ("compare", "early", "late", "--data-path", late_solves, "--halting", "max_steps")
    text = printed(*arguments)
    assert sentences(text).endswith(
        "max_steps: take late: it solves 12 of 12, significantly more than early "
        "(0; 12 only late, 0 only early, p = 0.00049)"
    )
    assert "max_steps: solved by late and not by early: line:1, line:2, line:3, line:4, line:5" in (
        sentences(text)
    )
    assert "and 7 more: see --json" in sentences(text)
    rows = [line.split() for line in text.splitlines()]
    assert any(row[:2] == ["late", "max_steps"] and "12/12" in row for row in rows)
    content = printed_json(*arguments)
    assert content["data"] == str(late_solves)
    early, late = content["measured"]
    assert (early["checkpoint"], late["checkpoint"]) == ("early", "late")
    assert late["solved"]["count"] == late["solved"]["of"] == 12
    assert early["solved"]["high"] < late["solved"]["low"]
    assert late["solved"]["low"] == pytest.approx(0.7575, abs=1e-4)
    (pair,) = content["pairs"]
    assert (pair["only_first"], pair["only_second"]) == (0, 12)
    assert pair["only_second_names"] == [f"line:{number}" for number in range(1, 13)]


def test_the_same_file_five_times_is_no_recommendation(late_solves: Path, tmp_path: Path) -> None:
    some = "\n".join(late_solves.read_text().splitlines()[:5])
    repeated = tmp_path / "repeated.jsonl"
    repeated.write_text(f"{some}\n" * 5)
    arguments = ("compare", "early", "late", "--data-path", repeated, "--halting", "max_steps")
    text = sentences(printed(*arguments))
    assert "max_steps: no recommendation: late solves 5 of 5, but cannot be told from early" in text
    assert "On the same messages, without 20 that repeat an earlier one" in text
    assert printed_json(*arguments)["repeated_lines"] == 20


def test_few_messages_cannot_tell_checkpoints_apart(late_solves: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text(late_solves.read_text().partition("\n")[0])
    text = sentences(printed("compare", "early", "late", "--data-path", few))
    assert (
        "max_steps: no recommendation: late solves 1 of 1, but cannot be told from early "
        "(0; 1 only late, 0 only early, p = 1)"
    ) in text
    measured = printed_json("compare", "early", "late", "--data-path", few)["measured"]
    assert [one["halting"] for one in measured] == ["max_steps", "max_steps", "q", "q"]


def test_refused_lines_are_named_and_counted(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\noops\n')
    result = call("compare", "early", "late", "--data-path", data, "--json")
    assert result.stderr.startswith(f"{data}:2: ")
    assert json.loads(result.stdout)["refused_lines"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.jsonl holds no message: give a file that does"),
        (
            '{"prompt": "a", "completion": "b", "puzzle_id": 5}',
            "data.jsonl: line 1 does not fit checkpoint early: puzzle_id 5, but",
        ),
    ],
)
def test_data_that_cannot_be_measured_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    assert message in refused("compare", "early", "late", "--data-path", tmp_path / "data.jsonl")


def test_checkpoints_that_loading_refuses_are_not_compared(folder: Path) -> None:
    state = state_of(TINY)
    state["q_head.bias"][0] = torch.nan
    store(folder / "broken", state)
    assert "q_head.bias has NaN or infinite numbers" in refused("compare", "early", "broken")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["early"], "name at least two checkpoints"),
        (["early", "late", "--data-path", __file__, "--device", "tpu"], "give cpu, cuda or cuda:N"),
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = call("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_checkpoint_twice_is_refused() -> None:
    assert "is named twice: name each checkpoint once" in refused("compare", "early", "early")
