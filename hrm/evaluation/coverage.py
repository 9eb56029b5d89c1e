"""Which of a checkpoint's training pairs an evaluation counted, and whether that is all of them.

Knows examples and hashes of pairs; nothing of verdicts or figures. Memory grows with the number of
training pairs, whose hashes are in memory anyway, and not with the number of examples.
"""

from collections.abc import Collection

from hrm.checkpoint import pair_hash
from schemas import HRMExample


class PairCoverage:
    """Counts which training pairs occur among examples, and with how many targets each.

    An interval says how far a share may move when other examples of the same kind are drawn. If
    every training pair was evaluated, and each with one target only, there are no others to draw,
    and the same evaluation gives the same share again: then an interval estimates nothing.

    Args:
        pair_hashes: Hashes of all training pairs.
    """

    def __init__(self, pair_hashes: Collection[str]) -> None:
        self._pair_hashes = pair_hashes
        self._targets: dict[str, int] = {}
        self._varied = False

    def add(self, example: HRMExample) -> bool:
        """Count `example`, and return whether it is one of the training pairs."""
        own = pair_hash(example.puzzle_id, example.input_sequence)
        if own not in self._pair_hashes:
            return False
        target = hash(example.target_sequence)
        self._varied |= self._targets.setdefault(own, target) != target
        return True

    @property
    def complete(self) -> bool:
        """Whether every training pair occurred, each with one target; repeats do not matter."""
        return not self._varied and len(self._targets) == len(self._pair_hashes) > 0
