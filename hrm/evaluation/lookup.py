"""Tables of training pairs as baselines: what a network adds to remembering its training set.

Knows puzzles, inputs and targets as tokens; nothing of networks or files. Memory grows with the
training pairs: measured with 14 + 78 tokens of conversion 1, 375 bytes for each, and 440 with the
nearest neighbour; with 14 + 107 tokens of conversion 2, 525 and 585.
"""

from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from hrm.evaluation.baselines import Baseline
from schemas import HRMExample

MAX_NEIGHBOURS = 10_000
"""Most training pairs for the nearest neighbour, which compares every example with all of them. At
10,000 that takes 0.5 ms for an example of 12 tokens and 3.9 ms for one of 100, on a CPU core."""

Targets = dict[tuple[int, str], tuple[str, ...]]
"""The targets of each puzzle and input."""


class TrainingPairs:
    """Collects training pairs: the targets of each puzzle and input, each once, in order."""

    def __init__(self) -> None:
        self._targets: Targets = {}

    def __len__(self) -> int:
        return len(self._targets)

    def add(self, example: HRMExample) -> None:
        """Collect one pair."""
        key, target = _key(example), _text(example.target_sequence)
        targets = self._targets.get(key, ())
        if target not in targets:
            self._targets[key] = (*targets, target)

    def baselines(self, fitted_on: str) -> tuple[Baseline, ...]:
        """Look-up and nearest neighbour; for more than `MAX_NEIGHBOURS` pairs, look-up alone."""
        lookup = Lookup(fitted_on, self._targets)
        if len(self) > MAX_NEIGHBOURS:
            return (lookup,)
        return lookup, NearestNeighbour(fitted_on, self._targets)


class Lookup:
    """The targets of the training pairs with the same puzzle and input; otherwise nothing."""

    name = "lookup"
    tokens = None

    def __init__(self, fitted_on: str, targets: Targets) -> None:
        self.fitted_on = fitted_on
        self._targets = targets

    def predict(self, example: HRMExample) -> Sequence[Sequence[int]]:
        """The targets of the pairs, or one without a token."""
        return list(map(_tokens, self._targets.get(_key(example), ("",))))


class NearestNeighbour:
    """The targets of the training pairs whose input has the smallest edit distance in tokens.

    Of equally near pairs, one with the example's puzzle wins, and then the earliest. A puzzle that
    is drawn by the prompt's hash is shared by unrelated prompts, so it only decides ties.
    """

    name = "nearest neighbour"
    tokens = None

    def __init__(self, fitted_on: str, targets: Targets) -> None:
        self.fitted_on = fitted_on
        self._all = _Neighbours()
        self._by_puzzle: dict[int, _Neighbours] = {}
        for (puzzle_id, inputs), accepted in targets.items():
            for neighbours in (self._all, self._by_puzzle.setdefault(puzzle_id, _Neighbours())):
                neighbours.add(inputs, accepted)

    def predict(self, example: HRMExample) -> Sequence[Sequence[int]]:
        """The targets of the nearest puzzle and input; there is at least one."""
        inputs = _text(example.input_sequence)
        own = self._by_puzzle.get(example.puzzle_id)
        nearest = None if own is None else own.nearest(inputs, None)
        # A pair with another puzzle has to be nearer.
        limit = None if nearest is None else nearest[0] - 1
        if limit is None or limit >= 0:
            nearest = self._all.nearest(inputs, limit) or nearest
        targets = ("",) if nearest is None else nearest[1]
        return list(map(_tokens, targets))


class _Neighbours:
    """Inputs of training pairs with their targets, in the order of the pairs."""

    def __init__(self) -> None:
        self._inputs: list[str] = []
        self._targets: list[tuple[str, ...]] = []

    def add(self, inputs: str, targets: tuple[str, ...]) -> None:
        self._inputs.append(inputs)
        self._targets.append(targets)

    def nearest(self, inputs: str, limit: int | None) -> tuple[int, tuple[str, ...]] | None:
        """Distance and targets of the first pair with the smallest distance, up to `limit`."""
        found = process.extractOne(
            inputs, self._inputs, scorer=Levenshtein.distance, score_cutoff=limit
        )
        return None if found is None else (int(found[1]), self._targets[found[2]])


def _key(example: HRMExample) -> tuple[int, str]:
    return example.puzzle_id, _text(example.input_sequence)


def _text(tokens: Sequence[int]) -> str:
    """Tokens as the characters with these numbers: a byte each if all are below 256."""
    return "".join(map(chr, tokens))


def _tokens(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))
