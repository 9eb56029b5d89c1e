"""The cost of a larger vocabulary: conversion 1 beside conversion 2 with more and more tokens."""

from contextlib import ExitStack, closing
from functools import partial
from statistics import median

import torch

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.vocabulary import vocabulary_of
from hrm.inference.engine import Engine
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, median_ratio
from tests.benchmarks.setting import THREADS, Setting, accepted_messages

TITLE = "Conversion 2 beside conversion 1"

HASHED_TOKENS = (499, 1011, 2035)

STEPS = (1, 16)
"""ACT steps of an example: the fewest and the most. The token head runs once, after the last."""


def run(setting: Setting) -> str:
    puzzles = setting.config.num_puzzle_identifiers
    conversions = [
        ConversionConfig(puzzle_space=puzzles),
        *(
            ConversionConfig(version=2, hashed_tokens=count, puzzle_space=puzzles)
            for count in HASHED_TOKENS
        ),
    ]
    messages = accepted_messages(setting.checkpoint())
    parts = [_parts(conversion, messages) for conversion in conversions]
    networks = [_network(setting, conversion) for conversion in conversions]
    rates: dict[int, list[list[float]]] = {}
    for steps in STEPS:
        # As many examples as take the time of `setting.examples` with the most steps.
        count = min(setting.examples * STEPS[-1] // steps, len(messages))
        with ExitStack() as stack:
            engines = [
                stack.enter_context(
                    closing(
                        Engine(
                            network,
                            slots=setting.slots,
                            halting=HaltedBy.MAX_STEPS,
                            max_steps=steps,
                            threads=THREADS,
                        )
                    )
                )
                for network in networks
            ]
            runs = interleaved(
                [
                    partial(engine_run, engine, own[:count])
                    for engine, own in zip(engines, parts, strict=True)
                ],
                setting.rounds,
            )
        rates[steps] = [[each.rate for each in own] for own in runs]
    rows = [
        [
            "1" if conversion.version == 1 else f"2, {conversion.hashed_tokens:,} hashed tokens",
            f"{len(own) / len(messages):.2f}",
            *(f"{median_ratio(rates[steps][0], rates[steps][place]):.2f}" for steps in STEPS),
            f"{sum(tensor.nbytes for tensor in network.state_dict().values()) / 2**20:.1f} MiB",
        ]
        for place, (conversion, own, network) in enumerate(
            zip(conversions, parts, networks, strict=True)
        )
    ]
    return paragraphs(
        f"D {setting.config.hidden_size}, {setting.config.H_layers} + {setting.config.L_layers} "
        f"layers, random weights, float32, {setting.slots} slots; the parts of {len(messages)} "
        f"sample messages. Seconds a part, divided by those of "
        f"conversion 1, which took {median(1e3 / rate for rate in rates[1][0]):.1f} ms for one "
        f"step; medians of {setting.rounds} paired runs.",
        table(
            ["conversion", "parts a message", "time, 1 step", "time, 16 steps", "weights"],
            rows,
        ),
    )


def _parts(conversion: ConversionConfig, messages: list[tuple[str, str]]) -> list[HRMExample]:
    converter = Converter(conversion)
    return [part for pair in messages for part in converter.parts(converter.convert(*pair))]


def _network(setting: Setting, conversion: ConversionConfig) -> HRM:
    torch.manual_seed(0)
    size = vocabulary_of(conversion).size
    config = setting.config.model_copy(update={"vocab_size": size})
    return HRM(config).to(setting.device).eval()
