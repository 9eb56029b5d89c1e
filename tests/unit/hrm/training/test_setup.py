"""A run is started and resumed from Python, as the guide says, and by what was recorded."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hrm.checkpoint import load_checkpoint
from hrm.training.options import OptionsError, RunPolicy, TrainingOptions
from hrm.training.run import latest_step
from hrm.training.setup import prepare_run
from hrm.training.state import RunRecord

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
        "prompt_noise": 0,
        "foreign_share": 0.2,
    }
    assert written == before | {"options": before["options"] | since}


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
