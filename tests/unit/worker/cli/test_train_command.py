"""`sqe-hrm train`, from a file of messages to a checkpoint whose figures can be measured again."""

import hashlib
import json
import re
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from hrm.checkpoint import Checkpoint, load_checkpoint, pair_hash
from hrm.data.config import PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.evaluation.measurement import measure
from hrm.model.batch import Messages, encode
from schemas import HaltedBy, HRMExample, SQEMessage
from tests.support.commands import refusal
from worker.cli.commands.train import command

PAIRS = [
    ("Test the agent", "hello end"),
    ("plan the deployment", "data " * 120),
    ("Watch the queue", "alerts and dashboards"),
]
OWN_PUZZLE = SQEMessage.create(agent_id="a", prompt="own", completion="puzzle", puzzle_id=23)
SIZES = ("--hidden-size", "16", "--num-heads", "2", "--layers", "1", "--puzzle-space", "11")
CONVERSION_1 = ("--conversion", "1")
SHORT = ("--steps", "3", "--batch-size", "2", "--measure-every", "2")


def write(path: Path) -> Path:
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in PAIRS]
    path.write_text("\n".join([*lines, "", OWN_PUZZLE.model_dump_json()]) + "\n")
    return path


def train(data: Path, output: Path, *options: str) -> Result:
    return CliRunner().invoke(
        command,
        [
            "--data-path",
            str(data),
            "--output",
            str(output),
            *SIZES,
            *SHORT,
            *CONVERSION_1,
            *options,
        ],
    )


class Run(NamedTuple):
    data: Path
    output: Path
    result: Result
    checkpoint: Checkpoint
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("train")
    data, output = write(folder / "accepted.jsonl"), folder / "runs" / "first"
    result = train(data, output, "--exploration", "0.25", "--seed", "5")
    assert result.exit_code == 0, result.output
    measured = json.loads((output / "measured.json").read_text())
    return Run(data, output, result, load_checkpoint(output), measured)


def examples_of(checkpoint: Checkpoint) -> list[HRMExample]:
    converter = Converter(checkpoint.conversion)
    examples = [converter.convert(*pair) for pair in PAIRS]
    return [*examples, converter.example_of(OWN_PUZZLE)]


def test_the_checkpoint_is_of_the_asked_sizes(run: Run) -> None:
    config = run.checkpoint.config
    assert (config.hidden_size, config.num_heads, config.puzzle_emb_ndim) == (16, 2, 16)
    assert (config.H_layers, config.L_layers, config.seq_len) == (1, 1, 100)
    assert config.halt_exploration_prob == 0.25
    assert run.checkpoint.conversion.puzzle_policy is PuzzlePolicy.PROMPT_HASH
    assert run.checkpoint.conversion.puzzle_space == 11
    assert run.checkpoint.name == "first"


def test_the_table_has_room_for_a_messages_own_puzzle(run: Run) -> None:
    assert run.checkpoint.config.num_puzzle_identifiers == 24


def test_all_pairs_are_known_and_no_other(run: Run) -> None:
    examples = examples_of(run.checkpoint)
    assert run.checkpoint.training is not None
    assert len(examples) == 4
    assert run.checkpoint.training.pair_hashes == {
        pair_hash(example.puzzle_id, example.input_sequence) for example in examples
    }


def test_target_tokens_are_counted(run: Run) -> None:
    assert run.checkpoint.training is not None
    targets = [
        token for example in examples_of(run.checkpoint) for token in example.target_sequence
    ]
    assert run.checkpoint.training.target_token_counts == tuple(map(targets.count, range(12)))


def test_the_figures_are_those_of_the_saved_weights(run: Run) -> None:
    network = run.checkpoint.build()
    batch = encode(examples_of(run.checkpoint), network.config)
    for halting in HaltedBy:
        found = asdict(measure(network, Messages.whole(batch), halting))
        recorded = run.measured["training_examples"][halting]
        for figure in ("examples", "solved", "q_accuracy", "mean_act_steps"):
            assert recorded[figure] == found[figure]
        assert recorded["token_accuracy"] == pytest.approx(found["token_accuracy"])


def test_what_coarser_dtypes_change_is_recorded_for_these_weights(run: Run) -> None:
    precision = run.checkpoint.precision
    assert precision is not None
    assert (precision.digest, precision.halt_max_steps) == (run.checkpoint.digest, 16)
    assert precision.pairs == 4
    # On any machine: kernels compute int8, or plain torch emulates them.
    assert [each.dtype for each in precision.checks] == ["bfloat16", "int8"]


def test_the_figures_are_recorded_for_these_weights(run: Run) -> None:
    figures = run.checkpoint.figures
    assert figures is not None
    assert figures.digest == run.checkpoint.digest
    assert (figures.halt_max_steps, figures.held_out) == (16, None)
    assert figures.accepted.messages == 4
    assert run.checkpoint.training is not None
    assert figures.accepted.target_tokens == sum(run.checkpoint.training.target_token_counts)
    for halting in HaltedBy:
        measured = run.measured["training_examples"][halting]
        recorded = figures.accepted.of(halting)
        assert recorded.solved == measured["solved"]
        assert recorded.q_right == measured["q_accuracy"] * 4
        assert recorded.mean_act_steps == measured["mean_act_steps"]


def test_the_record_says_how_to_do_it_again(run: Run) -> None:
    measured = run.measured
    assert measured["data_sha256"] == hashlib.sha256(run.data.read_bytes()).hexdigest()
    assert measured["recipe"]["steps"] == measured["steps_run"] == 3
    assert measured["recipe"]["seed"] == 5
    assert measured["recipe"]["batch_size"] == 2
    assert measured["step"] in {2, 3}
    assert measured["training_seconds"] >= 0
    assert measured["command"].startswith("sqe-hrm")
    assert measured["recipe"]["exploration"] == 0.25
    assert measured["recipe"]["forward_dtype"] in {"float32", "bfloat16"}
    assert measured["stopped"] == "steps"


def test_measurements_go_to_stderr_and_the_outcome_to_stdout(run: Run) -> None:
    start, plan, warning, *measurements = run.result.stderr.splitlines()
    assert plan == "3 steps, 0.0938 episodes for each message, seed 5"
    assert warning.endswith("give --steps 3200")
    assert start.startswith("4 messages, 1 with completions longer than the model reads; ")
    assert start.endswith(" activations on cpu, measured in float32")
    # One line each, however narrow a terminal might be.
    assert [line.split("  loss")[0] for line in measurements] == ["step     2", "step     3"]
    for line in measurements:
        assert re.search(r"max_steps: \d/4 solved, tokens .*, Q right .*, 16.0 steps  q: ", line)
    assert run.result.stdout.startswith(
        f"{run.output}: stopped after 3 steps (steps), best is step {run.measured['step']}: max_st"
    )
    assert run.result.stdout.count("\n") == 1


def test_the_same_seed_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    for name, seed in (("again", "5"), ("other", "6")):
        result = train(run.data, tmp_path / name, "--exploration", "0.25", "--seed", seed)
        assert result.exit_code == 0
    assert load_checkpoint(tmp_path / "again").digest == run.checkpoint.digest
    assert load_checkpoint(tmp_path / "other").digest != run.checkpoint.digest


@pytest.mark.parametrize(
    ("bad", "wording"),
    [
        ("oops", "Invalid JSON"),
        ('{"prompt": "only"}', "field 'completion': Field required: add it"),
        ('{"prompt": "", "completion": "c"}', "field 'prompt'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_trained(tmp_path: Path, bad: str, wording: str) -> None:
    data = write(tmp_path / "data.jsonl")
    data.write_text(data.read_text() + bad + "\n")
    told = refusal(train(data, tmp_path / "out"))
    assert told.startswith(f"{data}: line 6: ")
    assert wording in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_messages_is_refused(tmp_path: Path, content: str) -> None:
    data = tmp_path / "empty.jsonl"
    data.write_text(content)
    assert refusal(train(data, tmp_path / "out")) == (
        f"{data} holds no message: give accepted prompts and completions"
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    data = write(tmp_path / "data.jsonl")
    assert "cannot be written" in refusal(train(data, tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "options",
    [
        ("--num-heads", "3"),
        ("--num-heads", "16"),
        ("--num-heads", "0"),
        ("--hidden-size", "8"),
        ("--steps", "0"),
        ("--lr", "0"),
        ("--exploration", "1.5"),
        ("--forward-dtype", "float16"),
        ("--exploration", "nan"),
        ("--ema-decay", "1"),
        ("--max-grad-norm", "inf"),
        ("--puzzle-emb-lr", "-0.1"),
        ("--puzzle-space", "1048577"),
        ("--held-out-share", "1"),
        ("--save-every", "3"),
        ("--patience", "0"),
        ("--measure-sample", "0"),
    ],
)
def test_a_wrong_option_is_a_wrong_call(tmp_path: Path, options: tuple[str, str]) -> None:
    result = train(write(tmp_path / "data.jsonl"), tmp_path / "out", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_heads_are_told_in_one_line(tmp_path: Path) -> None:
    result = train(write(tmp_path / "data.jsonl"), tmp_path / "out", "--num-heads", "3")
    assert result.stderr.partition("Error: ")[2].splitlines() == [
        "--hidden-size and --num-heads: hidden_size 16 does not give 3 even-sized heads"
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--device", "nonsense"), "device 'nonsense': give cpu, cuda or cuda:N"),
        (("--lr", "nan"), "--lr: Input should be a finite number"),
    ],
)
def test_no_option_gives_a_traceback(tmp_path: Path, options: tuple[str, str], told: str) -> None:
    result = train(write(tmp_path / "data.jsonl"), tmp_path / "out", *options)
    assert result.exit_code == 2
    assert result.stderr.partition("Error: ")[2].splitlines() == [told]


def test_a_signal_ends_the_reading_of_data_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr("worker.cli.commands.train.prepare_run", interrupted)
    result = train(write(tmp_path / "data.jsonl"), tmp_path / "out")
    assert result.exit_code == 143
    assert result.stderr == f"{tmp_path / 'out'}: stopped before it began: nothing has changed\n"


def test_the_device_is_pinned(tmp_path: Path) -> None:
    result = train(write(tmp_path / "data.jsonl"), tmp_path / "out", "--device", "cuda:1")
    assert result.exit_code == 2
    assert "--device cpu" in result.stderr


def test_a_puzzle_beyond_any_table_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "p", "completion": "c", "puzzle_id": 10**30}))
    assert "line 1" in refusal(train(data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_a_wrong_call(tmp_path: Path) -> None:
    assert train(tmp_path / "absent", tmp_path / "out").exit_code == 2


def test_conversion_2_is_the_default_and_trains_on_parts_but_measures_messages(
    tmp_path: Path,
) -> None:
    data, output = write(tmp_path / "accepted.jsonl"), tmp_path / "second"
    result = CliRunner().invoke(
        command,
        [
            "--data-path",
            str(data),
            "--output",
            str(output),
            *SIZES,
            *SHORT,
            "--hashed-tokens",
            "40",
        ],
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("4 messages in 5 parts; ")
    checkpoint = load_checkpoint(output)
    assert (checkpoint.config.vocab_size, checkpoint.config.seq_len) == (53, 100)
    assert (checkpoint.conversion.version, checkpoint.conversion.hashed_tokens) == (2, 40)
    assert checkpoint.training is not None
    assert len(checkpoint.training.target_token_counts) == 53
    measured = json.loads((output / "measured.json").read_text())
    assert measured["training_examples"]["q"]["examples"] == 4
    further = train(data, tmp_path / "third", "--init-from", str(output), "--conversion", "2")
    assert further.exit_code == 0, further.output
    assert load_checkpoint(tmp_path / "third").conversion == checkpoint.conversion
    refused = train(data, tmp_path / "x", "--init-from", str(output), "--conversion", "1")
    assert refused.exit_code == 2
    assert "--conversion 1, but second has 2: leave it out" in refused.stderr


@pytest.mark.parametrize("option", [("--hashed-tokens", "40"), ("--case-sensitive",)])
def test_conversion_1_has_no_settings_of_conversion_2(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    result = train(write(tmp_path / "accepted.jsonl"), tmp_path / "out", *option)
    assert result.exit_code == 2
    assert f"{option[0]}: conversion 1 has no such choice" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_blank_text_is_refused_with_its_line(tmp_path: Path) -> None:
    data = tmp_path / "accepted.jsonl"
    data.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "completion": " \\n"}\n')
    result = train(data, tmp_path / "out", "--conversion", "2")
    assert refusal(result) == (
        f"{data}: line 2: field 'completion': white space alone, which the model cannot "
        "tell from other white space: give words, or remove the line"
    )


def test_prompt_noise_is_said_and_recorded(tmp_path: Path) -> None:
    data, output = tmp_path / "accepted.jsonl", tmp_path / "run"
    prompts = [f"plan the {word} of a busy shop" for word in ("load", "stock")]
    lines = [{"prompt": prompt, "completion": "an answer", "puzzle_id": 3} for prompt in prompts]
    lines += [{"prompt": "a b c d e f", "completion": "other", "puzzle_id": 3}]
    data.write_text("\n".join(map(json.dumps, lines)))
    result = train(data, output, "--prompt-noise", "2", "--foreign-share", "0.5")
    assert result.exit_code == 0, result.output
    start, alike, *_ = result.stderr.splitlines()
    assert "3 messages, 1 of 3 prompts varied by up to 2 words; " in start
    assert alike.startswith("too much alike to be varied: 2 prompts, ")
    assert alike.endswith("the first are line 1 and line 2")
    measured = json.loads((output / "measured.json").read_text())
    assert (measured["prompts"], measured["varied_prompts"]) == (3, 1)
    assert measured["recipe"]["prompt_noise"] == 2
    assert measured["recipe"]["foreign_share"] == 0.5
    record = load_checkpoint(output).training
    assert record is not None
    assert record.varied_prompts == 1
