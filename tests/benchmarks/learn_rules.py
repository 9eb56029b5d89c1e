"""`python -m tests.benchmarks.learn_rules`: whether a network learns the rules of tasks.

Trains on some fillings of each task of `tests.benchmarks.corpus`, and counts how many unseen
prompts of the same tasks it solves, beside predictors without a network. The recipe is that of
`sqe-hrm train`; the sequences are only as long as the corpus needs, which saves two thirds of the
time. Every measurement is a line of JSON.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.vocabulary import vocabulary_of
from hrm.evaluation.baselines import Baseline, TargetCounter
from hrm.evaluation.lookup import TrainingPairs
from hrm.evaluation.measurement import ExampleFigures, measure_each
from hrm.model.batch import Messages, encode
from hrm.model.config import TokenHead
from hrm.model.network import HRM
from hrm.training.trainer import Trainer, TrainingConfig
from schemas import HaltedBy, HRMExample
from tests.benchmarks import learning
from tests.benchmarks.corpus import TASKS, Pair, split


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learn_rules")
    parser.add_argument("--tasks", type=int, default=8, help="the first tasks of the corpus")
    parser.add_argument("--fillings", type=int, default=40, help="trained pairs of each task")
    parser.add_argument("--unseen", type=int, default=10, help="held-out pairs of each task")
    parser.add_argument("--conversion", type=int, choices=(1, 2), default=2)
    parser.add_argument("--no-puzzles", action="store_true", help="without puzzle embeddings")
    parser.add_argument(
        "--twins",
        action="store_true",
        help="add a task of the same prompts and other rules to each",
    )
    learning.add_options(parser)
    parser.set_defaults(steps=750, batch_size=96, hashed_tokens=1011, measure_every=150)
    options = parser.parse_args(arguments)
    learning.write(_lines(options), options.output)


def _lines(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    tasks = TASKS[: options.tasks]
    if options.twins:
        tasks = tuple(each for task in tasks for each in (task, task.twin()))
    parts = split(tasks, fillings=options.fillings, unseen=options.unseen, seed=options.seed)
    conversion = ConversionConfig()
    if options.conversion == 2:
        conversion = ConversionConfig(version=2, hashed_tokens=options.hashed_tokens)
    converter = Converter(conversion)
    rows = {task.name: row for row, task in enumerate(tasks)}
    trained, unseen = (_examples(pairs, converter, rows) for pairs in parts)
    yield {
        **learning.given(options),
        "trained": len(trained),
        "unseen_pairs": len(unseen),
        "baselines": {
            baseline.name: {
                "solved": sum(_solves(each, baseline) for each in unseen),
                "tokens": round(sum(_right(each, baseline) for each in unseen) / _total(unseen), 4),
            }
            for baseline in _baselines(trained, vocabulary_of(conversion).size)
        },
    }
    longest = max(
        max(len(each.input_sequence), len(each.target_sequence)) for each in trained + unseen
    )
    torch.manual_seed(options.seed)
    config = learning.network_config(
        options,
        vocab_size=vocabulary_of(conversion).size,
        seq_len=longest,
        puzzles=len(tasks),
        token_head=TokenHead.STABLEMAX if options.conversion == 1 else TokenHead.SOFTMAX,
        puzzle_emb_ndim=0 if options.no_puzzles else None,
    )
    network = HRM(config, torch.bfloat16)
    recipe = TrainingConfig(
        steps=options.steps, batch_size=options.batch_size, lr=options.lr, seed=options.seed
    )
    trainer = Trainer(network, encode(trained, config), recipe)
    seen, new = (Messages.whole(encode(each, config)) for each in (trained, unseen))
    sample = Messages.whole(encode(trained[:: max(1, len(trained) // len(unseen))], config))
    for line in learning.rounds(trainer, options):
        network = trainer.averaged_network
        measured = {"trained sample": sample, "unseen": new}
        rules = [HaltedBy.Q]
        if trainer.step_count == options.steps:
            measured, rules = {"trained": seen, "unseen": new}, list(HaltedBy)
        for name, messages in measured.items():
            for halting in rules:
                found = measure_each(network, messages, halting, levels=trainer.averaged_levels())
                line[f"{name} {halting}"] = learning.figures(found)
                if (name, halting) == ("unseen", HaltedBy.Q):
                    line["unsolved"] = _unsolved(parts.unseen, found)
        yield line


def _examples(
    pairs: Sequence[Pair], converter: Converter, rows: dict[str, int]
) -> list[HRMExample]:
    return [converter.convert(each.prompt, each.completion, rows[each.task]) for each in pairs]


def _baselines(trained: Sequence[HRMExample], size: int) -> list[Baseline]:
    """The baselines. The nearest prompt is always one of the task, by its other words; or by its
    puzzle, if a twin has the same prompts.
    """
    counter, pairs = TargetCounter(size), TrainingPairs()
    for each in trained:
        counter.add(each.target_sequence)
        pairs.add(each)
    name = "the trained pairs"
    return [*counter.baselines(name), *pairs.baselines(name)]


def _solves(example: HRMExample, baseline: Baseline) -> bool:
    return any(tuple(each) == example.target_sequence for each in baseline.predict(example))


def _right(example: HRMExample, baseline: Baseline) -> int:
    """Tokens of the target that the baseline's best prediction has right."""
    target = example.target_sequence
    return max(
        sum(a == b for a, b in zip(each, target, strict=False))
        for each in baseline.predict(example)
    )


def _total(examples: Sequence[HRMExample]) -> int:
    return sum(len(each.target_sequence) for each in examples)


def _unsolved(pairs: Sequence[Pair], found: ExampleFigures) -> dict[str, int]:
    """Unsolved pairs of each task."""
    counts: dict[str, int] = {}
    for pair, solved in zip(pairs, found.correctness.solved.tolist(), strict=True):
        if not solved:
            counts[pair.task] = counts.get(pair.task, 0) + 1
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
