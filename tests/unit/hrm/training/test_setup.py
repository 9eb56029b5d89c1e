"""A run is started and resumed from Python, as the guide says, and by what was recorded."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hrm.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from hrm.data.config import ENOUGH_PROMPTS, PuzzlePolicy
from hrm.data.conversion import AcceptedPair, Converter
from hrm.evaluation.evaluator import Evaluator
from hrm.model.network import HRM
from hrm.training.examples import MAX_PUZZLES, TrainingDataError
from hrm.training.folder import latest_step
from hrm.training.options import OptionsError, RunPolicy, TrainingOptions
from hrm.training.setup import enlarged, prepare_run
from hrm.training.state import RunRecord
from hrm.training.stop import InterruptedRunError, StopRequest
from tests.support.checkpoints import RECORD, SHA256, state_of, store, write_config
from tests.support.checkpoints import TINY as SIZES
from tests.support.predictors import StubPredictor

GUIDE = Path(__file__).parents[4] / "hrm" / "README.md"

TINY: dict[str, Any] = {
    "steps": 2,
    "batch_size": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "layers": 1,
    "puzzle_space": 8,
    "measure_every": 1,
    "forward_dtype": "float32",
}

RECORDED = """{"format_version": 1, "options": {"steps": 2, "hidden_size": 16, "num_heads": 2,
"layers": 1, "measure_every": 1, "init_from": null, "held_out": null, "held_out_share": null,
"forward_dtype": "float32", "puzzle_space": 8, "batch_size": 2, "lr": 0.001, "lr_warmup_steps": 50,
"lr_min_ratio": 0.0, "weight_decay": 1.0, "max_grad_norm": 1.0, "ema_decay": 0.99,
"puzzle_emb_lr": 0.01, "puzzle_emb_weight_decay": 0.1, "seed": 0, "exploration": 0.5},
"data_sha256": "d", "held_out_sha256": null, "measurements": [], "seconds": 1.5}"""
"""A record as the first release of runs wrote it: options as a dictionary."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "messages.jsonl"
    pairs = ({"prompt": f"plan the {word}", "completion": word} for word in "abcdef")
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def test_the_guides_run_trains_a_checkpoint(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = GUIDE.read_text(encoding="utf-8").partition("\n## From Python\n")[2]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (snippet,) = (block for block in blocks if "prepare_run" in block)
    assert snippet.count("steps=1000") == 1
    tiny = ", ".join(f"{name}={value!r}" for name, value in TINY.items())
    monkeypatch.chdir(data.parent)
    exec(snippet.replace("steps=1000", tiny), {})  # noqa: S102 - it is the guide's own
    checkpoint = load_checkpoint(data.parent / "checkpoints" / "mine")
    assert checkpoint.training is not None
    assert len(checkpoint.training.pair_hashes) == 5
    *measurements, best = capsys.readouterr().out.splitlines()
    assert [line.partition("(")[0] for line in measurements] == ["Measurement"] * 2
    assert re.fullmatch(r"[12] RuleFigures\(examples=5, solved=\d, .*", best)


def test_a_run_is_resumed_with_what_it_recorded(data: Path, tmp_path: Path) -> None:
    output, part = tmp_path / "run", tmp_path / "part"
    prepare_run(data, output, TrainingOptions(**TINY, seed=3), RunPolicy(save_every=1)).train()
    shutil.copytree(output / "step_1", part / "step_1")
    run = prepare_run(data, part, TrainingOptions(), resume=True)
    assert run.trainer.step_count == 1
    run.train()
    ends = [latest_step(folder) for folder in (output, part)]
    assert ends[0].record.options == ends[1].record.options
    assert ends[0].record.options.seed == 3
    assert ends[0].checkpoint.digest == ends[1].checkpoint.digest
    with pytest.raises(OptionsError, match=r"seed 0, but the run in .* has 3: leave it out"):
        prepare_run(data, part, TrainingOptions(seed=0), resume=True)


def test_the_length_and_the_puzzle_table_follow_from_the_number_of_messages(
    tmp_path: Path,
) -> None:
    data = tmp_path / "many.jsonl"
    named = [{"prompt": "p", "completion": "c", "puzzle_id": 7}]
    pairs = [{"prompt": f"plan {number}", "completion": "c d"} for number in range(150)]
    data.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs + named))
    unsaid = TINY | {"steps": None, "puzzle_space": None, "batch_size": 96}
    run = prepare_run(data, tmp_path / "run", TrainingOptions(**unsaid))
    # 151 examples, 73 episodes of 16 steps each, 96 at once.
    assert run.trainer.config.steps == run.options.steps == 1900
    assert run.options.puzzle_space == 2000
    assert run.trainer.network.config.num_puzzle_identifiers == 2000
    assert run.about["recipe"]["steps"] == 1900
    noisy = prepare_run(data, tmp_path / "noisy", TrainingOptions(**unsaid, prompt_noise=2))
    assert noisy.trainer.config.steps == 4600
    said = prepare_run(data, tmp_path / "said", TrainingOptions(**TINY, seed=1))
    assert (said.options.steps, said.options.puzzle_space) == (2, 8)
    # All but the one that names its puzzle share their rows.
    assert (said.about["prompts_sharing_rows"], said.about["prompts"]) == (150, 151)


def test_a_settled_length_is_resumed(data: Path, tmp_path: Path) -> None:
    unsaid = TINY | {"steps": None, "puzzle_space": None}
    stop = StopRequest()
    run = prepare_run(data, tmp_path / "run", TrainingOptions(**unsaid))
    with pytest.raises(InterruptedRunError):
        run.train(on_step=lambda _: stop.ask(), stop=stop)
    resumed = prepare_run(data, tmp_path / "run", TrainingOptions(), resume=True)
    assert resumed.options == run.options
    assert resumed.options.steps == 4800
    with pytest.raises(OptionsError, match=r"steps 5, but the run in .* has 4800: leave it out"):
        prepare_run(data, tmp_path / "run", TrainingOptions(steps=5), resume=True)


def test_a_run_recorded_before_options_were_typed_is_read() -> None:
    options = RunRecord.model_validate_json(RECORDED).options
    assert options == TrainingOptions(**TINY)
    assert (options.beta1, options.beta2) == (0.9, 0.95)


def test_a_record_has_the_form_it_had_before_and_the_options_added_since() -> None:
    before = json.loads(RECORDED)
    record = RunRecord(
        options=TrainingOptions(**TINY), data_sha256="d", held_out_sha256=None, seconds=1.5
    )
    written = json.loads(record.model_dump_json())
    since = {
        "beta1": 0.9,
        "beta2": 0.95,
        "contradictions": "refuse",
        "conversion": 2,
        "hashed_tokens": 1011,
        "case_sensitive": False,
        "find_tasks": False,
        "forget": False,
        "new_draws": 4,
        "full_share": 0.0,
        "replayed_emb_lr": 0.1,
        "prompt_noise": 0,
        "foreign_share": 0.2,
        "measure_sample": 128,
    }
    assert written == before | {"options": before["options"] | since, "parent": None}


def test_levels_that_differ_are_recorded_as_they_were() -> None:
    recorded = RECORDED.replace('"layers": 1', '"layers": "1 and 2"')
    assert RunRecord.model_validate_json(recorded).options.layers == "1 and 2"


def test_options_that_do_not_go_together_are_named(data: Path, tmp_path: Path) -> None:
    def refused(options: dict[str, Any], policy: RunPolicy | None = None) -> OptionsError:
        with pytest.raises(OptionsError) as caught:
            prepare_run(data, tmp_path / "out", TrainingOptions(**TINY | options), policy)
        assert not (tmp_path / "out").exists()
        assert str(caught.value).isprintable()
        return caught.value

    both = refused({"held_out": data, "held_out_share": 0.5})
    assert str(both) == "held_out and held_out_share: give one of them"
    assert refused({"num_heads": 3}).names == ("hidden_size", "num_heads")
    uneven = refused({"measure_every": 2}, RunPolicy(save_every=3))
    assert str(uneven).startswith("save_every 3: ")


@pytest.mark.parametrize(
    "field",
    [
        {"held_out_share": 1.0},
        {"held_out_share": float("nan")},
        {"exploration": 1.1},
        {"measure_every": 0},
        {"layers": "many"},
        {"forward_dtype": "float16"},
        {"unknown": 1},
    ],
)
def test_a_value_that_cannot_be_is_refused_when_it_is_given(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingOptions(**field)


def test_options_cannot_be_changed_after_they_were_given() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainingOptions().steps = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        RunPolicy(keep=0)


# Tasks.


def with_tasks(path: Path, *tasks: str | None, puzzle_id: int | None = None) -> Path:
    """A file of a pair for each of `tasks`."""
    pairs: list[dict[str, Any]] = [
        {"prompt": f"plan the {word}", "completion": word, "task": task}
        for word, task in zip("abcdef", tasks, strict=False)
    ]
    if puzzle_id is not None:
        pairs.append({"prompt": "own", "completion": "row", "puzzle_id": puzzle_id, "task": "no"})
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def rows_of(checkpoint: Checkpoint) -> dict[str, int]:
    return {task.name: task.row for task in checkpoint.conversion.tasks}


def test_each_task_of_the_data_gets_a_row_behind_all_others(tmp_path: Path) -> None:
    data = with_tasks(tmp_path / "m.jsonl", "b", "a", "b", None, puzzle_id=10)
    run = prepare_run(data, tmp_path / "run", TrainingOptions(**TINY))
    run.train()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.conversion.puzzle_policy is PuzzlePolicy.TASK
    assert rows_of(checkpoint) == {"b": 11, "a": 12}
    assert checkpoint.config.num_puzzle_identifiers == 13
    record = checkpoint.training
    assert record is not None
    assert record.prompts_of(11) == 2
    assert record.prompts_of(12) == record.prompts_of(999) == 1
    assert run.about["tasks"] == 2
    resumed = prepare_run(data, tmp_path / "run", TrainingOptions(), resume=True)
    assert resumed.about["tasks"] == 2


def test_a_file_without_tasks_has_the_policy_that_it_had(data: Path, tmp_path: Path) -> None:
    prepare_run(data, tmp_path / "run", TrainingOptions(**TINY)).train()
    conversion = load_checkpoint(tmp_path / "run").conversion
    assert conversion.puzzle_policy is PuzzlePolicy.PROMPT_HASH
    assert conversion.tasks == ()


def test_new_tasks_come_behind_the_table_of_the_base(tmp_path: Path) -> None:
    first = with_tasks(tmp_path / "first.jsonl", "a", "b")
    prepare_run(first, tmp_path / "first", TrainingOptions(**TINY)).train()
    more = with_tasks(tmp_path / "more.jsonl", "c", "b", "c")
    options = TrainingOptions(steps=1, measure_every=1, init_from="first")
    prepare_run(more, tmp_path / "second", options, checkpoint_dir=tmp_path).train()
    checkpoint = load_checkpoint(tmp_path / "second")
    assert rows_of(checkpoint) == {"a": 8, "b": 9, "c": 10}
    assert checkpoint.config.num_puzzle_identifiers == 11


def test_a_task_that_is_held_out_is_not_known(tmp_path: Path) -> None:
    data = with_tasks(tmp_path / "m.jsonl", "a", "a")
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "p", "completion": "c", "task": "other"}))
    options = TrainingOptions(**TINY, held_out=held_out)
    prepare_run(data, tmp_path / "run", options).train()
    assert rows_of(load_checkpoint(tmp_path / "run")) == {"a": 8}


def test_tasks_beyond_the_largest_table_are_refused(tmp_path: Path) -> None:
    data = with_tasks(tmp_path / "m.jsonl", "a", puzzle_id=MAX_PUZZLES - 1)
    with pytest.raises(TrainingDataError, match=r"m.jsonl: 1 tasks need puzzle rows up to 1048576"):
        prepare_run(data, tmp_path / "run", TrainingOptions(**TINY))


def test_a_base_that_counts_lines_takes_no_tasks(data: Path, tmp_path: Path) -> None:
    prepare_run(data, tmp_path / "base", TrainingOptions(**TINY)).train()
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace("prompt_hash", "line_index"))
    tasks = with_tasks(tmp_path / "tasks.jsonl", "a")
    options = TrainingOptions(init_from="base")
    with pytest.raises(TrainingDataError, match="has tasks, but base chooses puzzles by line"):
        prepare_run(tasks, tmp_path / "run", options, checkpoint_dir=tmp_path)


def test_a_checkpoint_whose_tasks_have_no_rows_is_not_evaluated(tmp_path: Path) -> None:
    data = with_tasks(tmp_path / "m.jsonl", "a")
    prepare_run(data, tmp_path / "run", TrainingOptions(**TINY)).train()
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    content["conversion"]["tasks"] = [{"name": "a", "row": 99}]
    config.write_text(json.dumps(content))
    checkpoint = load_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="task a has row 99, but the table has 9"):
        Evaluator(checkpoint, StubPredictor(), device="cpu", worker="w")


# Tasks that nobody named.


def slots(path: Path, words: Iterable[str], **fields: str) -> Path:
    pairs = [
        {"prompt": f"plan the load test of the {word} shop", "completion": word, **fields}
        for word in words
    ]
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def test_tasks_are_found_if_that_is_asked_for(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(ENOUGH_PROMPTS)]
    data = slots(tmp_path / "m.jsonl", words)
    prepare_run(data, tmp_path / "plain", TrainingOptions(**TINY)).train()
    assert rows_of(load_checkpoint(tmp_path / "plain")) == {}
    prepare_run(data, tmp_path / "run", TrainingOptions(**TINY, find_tasks=True)).train()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert rows_of(checkpoint) == {"found-1": 8}
    assert checkpoint.training is not None
    assert checkpoint.training.prompts_of(8) == ENOUGH_PROMPTS
    converter = Converter(checkpoint.conversion)
    new = AcceptedPair(prompt="plan the load test of the old shop", completion="c")
    assert converter.named_puzzle(new) == 8
    # A base's tasks stay, and no template is found twice.
    more = slots(tmp_path / "more.jsonl", [*words, "new"])
    options = TrainingOptions(steps=1, measure_every=1, init_from="run", find_tasks=True)
    prepare_run(more, tmp_path / "next", options, checkpoint_dir=tmp_path).train()
    assert load_checkpoint(tmp_path / "next").conversion == checkpoint.conversion


def test_too_few_prompts_and_named_ones_are_no_task_to_find(tmp_path: Path) -> None:
    few = slots(tmp_path / "few.jsonl", [f"w{number}" for number in range(ENOUGH_PROMPTS - 1)])
    named = slots(tmp_path / "named.jsonl", [f"w{n}" for n in range(ENOUGH_PROMPTS)], task="own")
    for data, rows in ((few, {}), (named, {"own": 8})):
        prepare_run(data, tmp_path / data.stem, TrainingOptions(**TINY, find_tasks=True)).train()
        assert rows_of(load_checkpoint(tmp_path / data.stem)) == rows


def test_twelve_tokens_are_too_few_to_find_tasks(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="find_tasks: 12 tokens tell too few words apart"):
        prepare_run(data, tmp_path / "run", TrainingOptions(conversion=1, find_tasks=True))


def test_new_rows_of_a_larger_table_are_zero(tmp_path: Path) -> None:
    state = state_of(SIZES)
    store(tmp_path, state)
    write_config(
        tmp_path, model=SIZES.model_dump(mode="json"), conversion=SHA256.model_dump(mode="json")
    )
    (tmp_path / "training_pairs.json").write_text(RECORD.model_dump_json())
    checkpoint = load_checkpoint(tmp_path)
    config, larger = enlarged(checkpoint, 8)
    assert config == SIZES.model_copy(update={"num_puzzle_identifiers": 8})
    HRM(config).load_state_dict(larger)
    assert torch.equal(larger["puzzle_emb.weights"][:5], state["puzzle_emb.weights"])
    assert larger["puzzle_emb.weights"][5:].tolist() == [[0.0] * 16] * 3
    for rows in (0, 5):
        assert enlarged(checkpoint, rows)[0] == SIZES
