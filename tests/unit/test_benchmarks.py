"""The benchmarks compute their figures correctly, and each of them runs."""

import json
import random
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.inference.config import Inference
from hrm.model.batch import encode
from hrm.model.network import HRM
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy, HRMExample
from tests.benchmarks import __main__ as command
from tests.benchmarks import bench_path, bench_share
from tests.benchmarks.bench_cache import stream
from tests.benchmarks.bench_latency import StaticServer
from tests.benchmarks.limit import arithmetic
from tests.benchmarks.page import section, table, with_section
from tests.benchmarks.peers.serving import Options, StaticBatches
from tests.benchmarks.runs import Run, interleaved, median_ratio, percentile
from tests.benchmarks.setting import (
    FULL_WIDTH,
    THREADS,
    Setting,
    hardware,
    known_examples,
    random_examples,
)
from tests.support.checkpoints import TINY

TIMEOUT = 30

WIDE = TINY.model_copy(update={"seq_len": 20, "halt_max_steps": 3})

MESSAGES = [("plan the test", "scope and data"), ("report a defect", "steps to see it")]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A setting with tiny sizes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = folder / "one", folder / "two"
    for seed, path in enumerate(checkpoints):
        save_checkpoint(
            path, network(seed).state_dict(), WIDE, ConversionConfig(puzzle_space=5), None
        )
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in MESSAGES]
    (checkpoints[0] / "messages.jsonl").write_text("\n".join(lines))
    return Setting(
        rounds=1,
        slots=2,
        examples=4,
        halting_examples=6,
        single_examples=1,
        requests=5,
        live=1,
        backfill=1000,
        singles=500,
        batched=5120,
        halting_messages=50,
        turns=1,
        unknown=3,
        messages=20,
        training_batch=2,
        training_steps=2,
        seconds=0.01,
        markers=(100, 1000),
        scale_messages=20,
        scale_workers=2,
        scale_rate=20.0,
        scale_seconds=0.2,
        config=WIDE,
        checkpoints=checkpoints,
    )


def network(seed: int = 0) -> HRM:
    """A network with random weights; the Q head's too, so that examples halt at different steps."""
    torch.manual_seed(seed)
    built = HRM(WIDE)
    built.load_state_dict({key: torch.randn_like(each) for key, each in built.state_dict().items()})
    return built.eval()


# The page.


def test_a_section_replaces_the_one_with_the_same_heading() -> None:
    page = "# Title\n\nWords.\n\n## One\n\nold\n\n### Below\n\nold\n\n## One more\n\nstays\n"
    replaced = with_section(page, section("One", "new", "| a |"))
    assert replaced == "# Title\n\nWords.\n\n## One\n\nnew\n\n| a |\n\n## One more\n\nstays\n"
    assert with_section(replaced, section("One", "new", "| a |")) == replaced


def test_a_new_section_is_appended() -> None:
    assert with_section("# Title\n", section("One", "text")) == "# Title\n\n## One\n\ntext\n"
    assert with_section("", section("One", "text")) == "## One\n\ntext\n"
    assert with_section("## One\n\nold", section("One", "text")) == "## One\n\ntext\n"


def test_words_are_aligned_left_and_numbers_right() -> None:
    lines = table(["a", "b", "c"], [["x", "y", "1"], ["z", "w", "2"]], left=2).split("\n")
    assert lines == ["| a | b | c |", "| --- | --- | ---: |", "| x | y | 1 |", "| z | w | 2 |"]


def test_the_hardware_has_a_name() -> None:
    name, threads = hardware("cpu").rsplit(", ", 1)
    assert name.strip()
    assert threads == f"{THREADS} threads"


class Stub:
    TITLE = "Stub"

    def run(self, setting: Setting) -> str:
        return f"{setting.slots} slots"


def test_a_run_writes_its_sections_and_a_quick_one_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Measured\n\n## Stub, on a GPU\n\nstays\n")
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(command, "BENCHMARKS", {"stub": Stub(), "other": Stub()})
    command.main(["--only", "stub"])
    text = capsys.readouterr().out.strip()
    assert text.startswith("## Stub, on a CPU\n\n20")
    assert "`python -m tests.benchmarks --only stub`.\n\n8 slots" in text
    assert results.read_text() == f"# Measured\n\n## Stub, on a GPU\n\nstays\n\n{text}\n"
    before = results.read_text()
    command.main(["--quick", "--only", "stub"])
    assert "4 slots" in capsys.readouterr().out
    assert results.read_text() == before


# The peers' servers, as far as they need no packages of their own.


def test_a_server_reads_the_command_line_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = Options(tmp_path, HaltedBy.Q, slots=3, threads=1, port=80)
    monkeypatch.setattr("sys.argv", ["server", *options.command()])
    assert Options.parse() == options


def test_static_batches_answer_as_the_engine(setting: Setting) -> None:
    checkpoint = setting.checkpoint()
    options = Options(checkpoint.path, HaltedBy.MAX_STEPS, slots=2, threads=1, port=0)
    examples = known_examples(checkpoint, 3)
    answers = StaticBatches(options).answers([each.model_dump(mode="json") for each in examples])
    inference = Inference(halting=options.halting, slots=2, threads=1)
    with closing(inference.open(checkpoint, "cpu")) as engine:
        predictions = [engine.submit(each).result() for each in examples]
    assert [tuple(answer["tokens"]) for answer in answers] == [each.tokens for each in predictions]


# Figures.


def test_a_full_width_example_takes_35_gflop() -> None:
    linear = 101 * 2 * (256 * 768 + 256 * 256 + 256 * 1536 + 768 * 256)
    attention = 4 * 101 * 101 * 256
    head = 2 * 100 * 256 * 12
    blocks = 16 * (2 * 2 + 2 * 2 * 2)
    assert arithmetic(FULL_WIDTH, 16) == blocks * (linear + attention) + head
    assert blocks * linear / 1e9 == pytest.approx(33, rel=0.01)
    assert arithmetic(FULL_WIDTH, 16) / 1e9 == pytest.approx(35, rel=0.01)


def test_the_arithmetic_equals_torchs_count() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415 - as below
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import

    built, batch = network(), encode(random_examples(WIDE, 1), WIDE)
    x = built.embed(batch.inputs, built.puzzle_embedding(batch.puzzle_ids))
    counting = FlopCounterMode(display=False)  # does not count fused attention on a CPU
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counting:
        built.token_logits(built.step(built.initial_state(1), x).z_H)
    assert counting.get_total_flops() == arithmetic(WIDE, 1)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([4, 2, 1, 3], share) == expected


def test_ratios_are_taken_within_the_pairs() -> None:
    assert median_ratio([2, 30, 3], [1, 10, 2]) == 2


def test_rounds_alternate_after_a_warm_up_round() -> None:
    calls: list[str] = []

    def contestant(name: str) -> int:
        calls.append(name)
        return len(calls)

    given = interleaved([lambda: contestant("a"), lambda: contestant("b")], rounds=3)
    assert "".join(calls) == "ababbaab"
    assert given == [[3, 6, 7], [4, 5, 8]]


def test_an_example_is_solved_if_every_target_token_is_right() -> None:
    examples = [
        each.model_copy(update={"target_sequence": (0, 5, 11)}) for each in random_examples(WIDE, 3)
    ]
    tokens = [(0, 5, 11, 7), (0, 5, 11, 0), (0, 4, 11, 7)]
    run = Run(rate=1.0, tokens=tokens, steps=[1, 2, 6])
    assert run.solved(examples) == pytest.approx(2 / 3)
    assert run.mean_steps == 3


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_stream_has_the_given_share_of_repeats(share: float) -> None:
    distinct = random_examples(WIDE, 10)
    messages = stream(distinct, share, random.Random(0))
    assert len(messages) == round(10 / (1 - share))
    assert list(dict.fromkeys(map(inputs_of, messages))) == list(map(inputs_of, distinct))


def inputs_of(example: HRMExample) -> tuple[int, tuple[int, ...]]:
    return example.puzzle_id, example.input_sequence


def test_known_examples_are_repeated_evenly(setting: Setting) -> None:
    checkpoint = setting.checkpoint()
    once, often = known_examples(checkpoint), known_examples(checkpoint, 5)
    assert sorted(Counter(map(inputs_of, often)).values()) == [2, 3]
    assert set(map(inputs_of, often)) == set(map(inputs_of, once))


# The server that works in static batches.


@pytest.mark.parametrize("halting", HaltedBy)
def test_the_static_server_answers_as_the_plain_loop(halting: HaltedBy) -> None:
    examples = random_examples(WIDE, 7)
    expected = evaluate_batch(network(), encode(examples, WIDE), halting=halting)
    with closing(StaticServer(network(), slots=3, halting=halting, threads=1)) as server:
        futures = [server.submit(example) for example in examples]
        answers = [future.result(TIMEOUT) for future in futures]
    assert [list(answer.tokens) for answer in answers] == expected.predictions.tolist()
    assert [answer.act_steps for answer in answers] == expected.steps.tolist()
    assert [answer.q_flips for answer in answers] == expected.q_flips.tolist()


def test_the_static_server_answers_waiting_examples_before_it_closes() -> None:
    server = StaticServer(network(), slots=2, halting=HaltedBy.MAX_STEPS, threads=1)
    futures = [server.submit(example) for example in random_examples(WIDE, 5)]
    server.close()
    assert all(future.done() for future in futures)


# Each benchmark.


@pytest.mark.parametrize(
    "name", [name for name in command.BENCHMARKS if name not in ("path", "share")]
)
def test_a_benchmark_runs(name: str, setting: Setting) -> None:
    body = command.BENCHMARKS[name].run(setting)
    _, *rows = [line for line in body.split("\n") if line.startswith("|")]
    assert len(rows) > 1
    assert "nan" not in body
    assert not any(line.startswith("#") for line in body.split("\n"))


def test_a_queue_that_falls_is_timed_in_messages(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmarks of the path have dozens of workers; here is one of each kind."""
    monkeypatch.setattr(bench_path, "LOOK_SECONDS", 0.001)  # for a queue that is soon empty
    for fall in (bench_path.plain(setting), bench_path.emptied(setting, setting.batched, 256)):
        assert fall.rate > 0
        assert 0 < fall.round_trips < 10


def test_an_engine_and_a_worker_take_turns(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_share, "TURN_SECONDS", 0.3)
    assert min(bench_share._round(setting, HaltedBy.Q, 1)) > 0
