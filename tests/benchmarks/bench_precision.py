"""Frequency with which answers in bfloat16 and int8 differ from those in float32."""

import random
from collections.abc import Mapping, Sequence
from contextlib import closing

import torch

from hrm.checkpoint import Checkpoint
from hrm.data.conversion import Converter
from hrm.evaluation.statistics import wilson_interval
from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from schemas import HaltedBy, HRMExample
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import Run, engine_run
from tests.benchmarks.setting import (
    THREADS,
    Setting,
    accepted_messages,
    dtype_name,
    engine_dtypes,
    known_examples,
    random_examples,
)

TITLE = "bfloat16 and int8 against float32"

CHANGED_WORDS = 0.2
"""Share of a prompt's words that is replaced in a changed prompt, at least one word."""

NEW_WORDS = ("quorum", "latch", "orbit", "velvet", "harbour", "matrix", "lantern", "copper")
"""Words to replace others with; none contains a vocabulary entry."""


def run(setting: Setting) -> str:
    checkpoint = setting.checkpoint()
    groups = {
        "known messages": known_examples(checkpoint)[: setting.known],
        "changed prompts": _changed_prompts(checkpoint, setting.unknown),
        "random tokens": random_examples(checkpoint.config, setting.unknown),
    }
    dtypes = engine_dtypes(checkpoint.config, setting.device)
    rows = []
    for halting in HaltedBy:
        float32, *others = (_runs(setting, checkpoint, groups, halting, each) for each in dtypes)
        rows += [
            [
                dtype_name(dtype),
                str(halting),
                name,
                *_differences(float32[name], other[name], examples),
            ]
            for dtype, other in zip(dtypes[1:], others, strict=True)
            for name, examples in groups.items()
        ]
    header = ["dtype", "rule", "examples", "predictions", "step counts", "tokens"]
    return paragraphs(
        f"{checkpoint.name}: numbers of differences, with 95 % Wilson intervals. A prediction is "
        "compared over the target's length. Tokens of one prediction depend on each other, so for "
        "them only the share is given.",
        table(header, rows, left=3),
    )


def _changed_prompts(checkpoint: Checkpoint, count: int) -> list[HRMExample]:
    """Known messages with some words of the prompt replaced, which also changes the puzzle."""
    source = random.Random(0)
    converter, accepted = Converter(checkpoint.conversion), accepted_messages(checkpoint)
    messages = source.choices(accepted, k=count)
    return [
        converter.convert(_changed(prompt, source), completion) for prompt, completion in messages
    ]


def _changed(prompt: str, source: random.Random) -> str:
    words = prompt.split()
    count = max(1, round(CHANGED_WORDS * len(words)))
    # From the back, which gives the words of the published figures.
    for place in sorted(source.sample(range(len(words)), count), reverse=True):
        words[place] = source.choice(NEW_WORDS)
    return " ".join(words)


def _runs(
    setting: Setting,
    checkpoint: Checkpoint,
    groups: Mapping[str, Sequence[HRMExample]],
    halting: HaltedBy,
    dtype: torch.dtype,
) -> dict[str, Run]:
    inference = Inference(slots=setting.slots, halting=halting, dtype=dtype)
    network = inference.network(checkpoint, setting.device)
    with closing(Engine(network, slots=setting.slots, halting=halting, threads=THREADS)) as engine:
        return {name: engine_run(engine, examples) for name, examples in groups.items()}


def _differences(one: Run, other: Run, examples: Sequence[HRMExample]) -> list[str]:
    tokens = []
    for example, ours, theirs in zip(examples, one.tokens, other.tokens, strict=True):
        length = len(example.target_sequence)
        tokens.append(sum(a != b for a, b in zip(ours[:length], theirs[:length], strict=True)))
    steps = sum(a != b for a, b in zip(one.steps, other.steps, strict=True))
    total = sum(len(example.target_sequence) for example in examples)
    return [
        _share(sum(map(bool, tokens)), len(examples)),
        _share(steps, len(examples)),
        f"{sum(tokens):,} of {total:,}, {100 * sum(tokens) / total:.2f} %",
    ]


def _share(count: int, of: int) -> str:
    low, high = wilson_interval(count, of)
    return f"{count:,} of {of:,}, {100 * low:.1f} to {100 * high:.1f} %"
