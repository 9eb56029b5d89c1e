"""Which of a checkpoint's training pairs an evaluation counted, and whether that is all of them.

Knows examples and hashes of pairs; nothing of verdicts or figures. Memory grows with the number of
training pairs, whose hashes are in memory anyway, and not with the number of examples.
"""

from collections.abc import Collection

from hrm.checkpoint import pair_hash
from schemas import HRMExample, TextCheck


class PairCoverage:
    """Counts which training pairs occur among examples, and whether their completions vary.

    An interval says how far a share may move when other examples of the same kind are drawn. If
    every training pair was evaluated, each with one target only and none with a completion that
    was not accepted, there are no others to draw, and the same evaluation gives the same share
    again: then an interval estimates nothing.

    Args:
        pair_hashes: Hashes of all training pairs.
    """

    def __init__(self, pair_hashes: Collection[str]) -> None:
        self._pair_hashes = pair_hashes
        self._targets: dict[str, int] = {}
        self._varied = False

    def add(self, example: HRMExample, text: TextCheck) -> bool:
        """Count an example, and return whether it is one of the training pairs.

        `text` says whether its completion is an accepted one. Completions that are not are a sample
        of the changes that an agent may make.
        """
        own = pair_hash(example.puzzle_id, example.input_sequence)
        if own not in self._pair_hashes:
            return False
        target = hash(example.target_sequence)
        self._varied |= self._targets.setdefault(own, target) != target
        self._varied |= text is TextCheck.DIFFERENT
        return True

    @property
    def complete(self) -> bool:
        """Whether every training pair occurred, each with one target, and unchanged.

        Repeats do not matter.
        """
        return not self._varied and len(self._targets) == len(self._pair_hashes) > 0
