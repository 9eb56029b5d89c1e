"""`python -m tests.benchmarks.learn_variation`: whether a network takes varied prompts.

Trains on the sample messages with and without prompt noise, and measures on prompts that neither
run has seen: held-out variations of 1 to 3 words, made of texts, and foreign prompts under the
puzzle of an accepted one. The recipe is that of `sqe-hrm train`; the sequences are only as long as
the messages need. Every measurement is a line of JSON.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from random import Random

import torch

from hrm.data.changes import ChangeKind, Replacements, change_at, places
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.evaluation.lookup import TrainingPairs
from hrm.evaluation.measurement import measure_each
from hrm.model.batch import encode_messages
from hrm.model.network import HRM
from hrm.training.noise import PromptNoise
from hrm.training.trainer import Trainer, TrainingConfig
from schemas import HaltedBy, HRMExample
from tests.benchmarks import learning
from tests.benchmarks.corpus import TASKS, split
from tests.benchmarks.setting import CHECKPOINTS
from worker.demo.traffic import read_accepted

SAMPLES = CHECKPOINTS / "sqe-demo" / "messages.jsonl"

POLITE = ("please", "kindly", "now", "again", "our", "the", "new", "also", "today:", "(urgent)")
"""Words that agents add or exchange, beside those of the other prompts."""

FOREIGN = 4
"""Foreign prompts of each kind for each puzzle."""

Texts = tuple[str, str, int]
"""Prompt, completion and puzzle."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learn_variation")
    parser.add_argument("--messages", type=int, help="the shortest ones (default: all)")
    parser.add_argument("--prompt-noise", type=int, default=0)
    parser.add_argument("--foreign-share", type=float, default=0.2)
    parser.add_argument("--variants", type=int, default=2, help="held-out variants of each prompt")
    learning.add_options(parser)
    parser.set_defaults(steps=1500, batch_size=48, hashed_tokens=499, measure_every=250)
    options = parser.parse_args(arguments)
    learning.write(_lines(options), options.output)


def _lines(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    converter = Converter(ConversionConfig(version=2, hashed_tokens=options.hashed_tokens))
    texts = sorted(read_accepted(SAMPLES), key=lambda pair: len(pair[1].split()))
    pairs = [
        (prompt, completion, converter.puzzle_id_for(prompt))
        for prompt, completion in texts[: options.messages]
    ]
    sets = {"exact": pairs, **_held_out(pairs, options.variants, Random(1))}
    examples = {name: _parts(found, converter) for name, found in sets.items()}
    longest = max(
        max(len(each.input_sequence), len(each.target_sequence))
        for messages in examples.values()
        for parts in messages
        for each in parts
    )
    config = learning.network_config(
        options,
        vocab_size=converter.tokenizer.vocabulary.size,
        seq_len=longest,
        puzzles=converter.config.puzzle_space,
    )
    messages = {name: encode_messages(found, config) for name, found in examples.items()}
    torch.manual_seed(options.seed)
    network = HRM(config, torch.bfloat16)
    recipe = TrainingConfig.model_validate(
        {
            name: value
            for name, value in vars(options).items()
            if name in TrainingConfig.model_fields
        }
    )
    trained = messages["exact"].parts
    noise = PromptNoise(
        trained,
        converter.tokenizer.vocabulary,
        changes=options.prompt_noise,
        foreign_share=options.foreign_share,
    )
    trainer = Trainer(network, trained, recipe, noise if options.prompt_noise else None)
    yield {
        **learning.given(options),
        "nearest neighbour": _nearest_neighbour(sets, converter),
    }
    for line in learning.rounds(trainer, options):
        for name, found in messages.items():
            measured = measure_each(
                trainer.averaged_network, found, HaltedBy.Q, levels=trainer.averaged_levels()
            )
            line[name] = learning.figures(measured)
        yield line


def _nearest_neighbour(sets: Mapping[str, Sequence[Texts]], converter: Converter) -> dict[str, int]:
    """How many messages of each set the accepted pair with the nearest prompt solves."""
    accepted = TrainingPairs()
    for each in sets["exact"]:
        accepted.add(converter.convert(*each))
    _, nearest = accepted.baselines("the exact pairs")
    examples = {name: [converter.convert(*each) for each in found] for name, found in sets.items()}
    return {
        name: sum(each.target_sequence in map(tuple, nearest.predict(each)) for each in found)
        for name, found in examples.items()
    }


def _held_out(pairs: Sequence[Texts], variants: int, source: Random) -> dict[str, list[Texts]]:
    """Everything to measure beside the exact pairs."""
    words = [*POLITE, *(word for prompt, _, _ in pairs for word in prompt.split())]
    replacements = Replacements.of(completion for _, completion, _ in pairs)
    strangers = [each.prompt for each in split(TASKS, fillings=2, unseen=5, seed=7).trained]
    found: dict[str, list[Texts]] = {}
    for changes in (1, 2, 3):
        found[f"varied {changes}"] = [
            (_varied(prompt, changes, words, source), completion, puzzle)
            for prompt, completion, puzzle in pairs
            for _ in range(variants)
        ]
    for name, kept in (("exact", pairs), ("varied", [p for k in found for p in found[k]])):
        found[f"{name}, changed answer"] = [
            (prompt, _changed(completion, replacements, source), puzzle)
            for prompt, completion, puzzle in kept
        ]
    found["other prompt of the file"] = [
        (source.choice([o for o, _, p in pairs if p != puzzle]), completion, puzzle)
        for _, completion, puzzle in pairs
        for _ in range(FOREIGN)
    ]
    found["unseen prompt"] = [
        (source.choice(strangers), completion, puzzle)
        for _, completion, puzzle in pairs
        for _ in range(FOREIGN)
    ]
    return found


def _varied(prompt: str, changes: int, words: Sequence[str], source: Random) -> str:
    """Change exactly `changes` different words of a prompt."""
    split_ = prompt.split()
    for place in sorted(source.sample(range(len(split_)), changes), reverse=True):
        kind = source.choice(("drop", "replace", "insert", "swap"))
        if kind == "drop":
            del split_[place]
        elif kind == "replace":
            new = source.choice([word for word in words if word != split_[place]])
            split_[place] = new
        elif kind == "insert":
            split_.insert(place, source.choice(words))
        else:
            split_[place : place + 2] = reversed(split_[place : place + 2])
    return " ".join(split_)


def _changed(completion: str, replacements: Replacements, source: Random) -> str:
    kind = ChangeKind.WORD_REPLACED
    span = source.choice(places(kind, completion))
    change = change_at(span, kind, completion, replacements, source)
    assert change is not None
    return change.text


def _parts(pairs: Sequence[Texts], converter: Converter) -> list[Sequence[HRMExample]]:
    return [converter.parts(converter.convert(*each)) for each in pairs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
