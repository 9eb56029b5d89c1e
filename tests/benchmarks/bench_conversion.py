"""Messages converted to examples per second, by `hrm.data.files` and by the plain approach.

Both convert one file of generated pairs as long as real ones (9 words of prompt, 48 of completion).
Word frequencies are those of a natural language, and one word in 50 has not occurred before. Each
pair of runs converts the file both ways, one after the other, on one core. The ratio is taken
within the pair, so that a slowdown of the machine affects both.
"""

import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine, convert_file
from hrm.data.vocabulary import VOCABULARY_1
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import interleaved, median_ratio
from tests.benchmarks.setting import Setting

TITLE = "Conversion"


def run(setting: Setting) -> str:
    with tempfile.TemporaryDirectory() as name:
        source, plain, ours = (Path(name, file) for file in ("source", "plain", "ours"))
        _write_messages(source, setting.messages)
        seconds = interleaved(
            [
                lambda: _seconds(_convert_plainly, source, plain),
                lambda: _seconds(_convert, source, ours),
            ],
            setting.rounds,
        )
        _check_equal(plain, ours)
    rates = [[setting.messages / each for each in own] for own in seconds]
    rows = [
        [name, f"{statistics.median(own):,.0f}"]
        for name, own in zip(("word by word", "`sqe-hrm convert`"), rates, strict=True)
    ]
    ratio = ["ratio", f"{median_ratio(rates[1], rates[0]):.1f}"]
    return paragraphs(
        f"A file of {setting.messages:,} generated messages, on one core, medians of "
        f"{setting.rounds} paired runs.",
        table(["conversion of a file", "messages/s"], [*rows, ratio]),
    )


def _write_messages(path: Path, messages: int) -> None:
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    language = [
        "".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 11))) for _ in range(5_000)
    ]
    language += [
        f"{name}{ending}" for name in VOCABULARY_1.names for ending in ("", "s", ":", "ing,")
    ]
    rng.shuffle(language)
    frequencies = [1 / rank for rank in range(1, len(language) + 1)]

    def text(words: int) -> str:
        chosen = rng.choices(language, frequencies, k=words)
        return " ".join(f"id_{rng.getrandbits(40)}" if rng.random() < 0.02 else w for w in chosen)

    with path.open("w") as file:
        for _ in range(messages):
            pair = {
                "prompt": text(rng.randint(7, 11)),
                "completion": text(rng.randint(38, 58)),
            }
            file.write(json.dumps(pair) + "\n")


def _seconds(convert: Callable[[Path, Path], None], source: Path, target: Path) -> float:
    started = time.perf_counter()
    convert(source, target)
    return time.perf_counter() - started


def _convert(source: Path, target: Path) -> None:
    def fail(line: RefusedLine) -> None:
        raise AssertionError(line)

    # A new converter, with an empty cache as in a new process.
    converter = Converter(ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX))
    with source.open("rb") as lines, target.open("wb") as examples:
        convert_file(lines, examples, converter, on_refused=fail)


def _convert_plainly(source: Path, target: Path) -> None:
    """Convert `source` the plain way: apply the rule to every word of every message, check no line.

    This is the baseline.
    """
    with source.open() as lines, target.open("w") as examples:
        for index, line in enumerate(lines):
            pair = json.loads(line)
            prompt, completion = pair["prompt"], pair["completion"]
            inputs, targets = _plain_sequence(prompt), _plain_sequence(completion)
            length = len(prompt) + len(completion)
            steps = min(len(inputs), len(targets))
            example = {
                "puzzle_id": index % 1000,
                "input_sequence": inputs,
                "target_sequence": targets,
                "solution_steps": [{"action": n % 2, "state": None} for n in range(steps)],
                "metadata": {
                    "source": "sqe_agent",
                    "prompt_length": len(prompt),
                    "completion_length": len(completion),
                    "difficulty": "easy" if length < 500 else "medium" if length < 1500 else "hard",
                },
            }
            examples.write(json.dumps(example) + "\n")


def _plain_sequence(text: str) -> list[int]:
    return [0, *(_plain_token(word) for word in text.lower().split()[:98]), 11]


def _plain_token(word: str) -> int:
    for token, name in enumerate(VOCABULARY_1.names):
        if name in word:
            return token
    return int(hashlib.md5(word.encode()).hexdigest(), 16) % 9 + 1  # noqa: S324 - no secret


def _check_equal(plain: Path, ours: Path) -> None:
    """Raise `AssertionError` unless both files hold the same examples.

    Otherwise the speeds could not be compared.
    """
    with plain.open() as expected, ours.open() as found:
        for one, other in zip(expected, found, strict=True):
            if json.loads(one) != json.loads(other):
                raise AssertionError(f"{one} became {other}")
