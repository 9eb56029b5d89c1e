"""Which of a checkpoint's training pairs an evaluation counted, and whether that is all of them.

Knows examples and hashes of pairs; nothing of verdicts or figures. Memory grows with the number of
training pairs, whose hashes are in memory anyway, and not with the number of examples.
"""

from hrm.checkpoint import TrainingRecord, pair_hash
from hrm.checkpoint.record import target_hash
from schemas import HRMExample, TextCheck


class PairCoverage:
    """Counts which training pairs occur among examples, and whether their completions vary.

    An interval says how far a share may move when other examples of the same kind are drawn. If
    every training pair was evaluated, each with all its accepted targets, which is one as a rule,
    and none with a completion that was not accepted, there are no others to draw, and the same
    evaluation gives the same share again: then an interval estimates nothing.

    Args:
        record: The record of the training pairs; without one, no pair is known.
    """

    def __init__(self, record: TrainingRecord | None) -> None:
        self._pair_hashes = frozenset() if record is None else record.pair_hashes
        self._answers = {} if record is None else record.answers
        self._targets: dict[str, int] = {}
        self._missing_answers = {
            (pair, target) for pair, targets in self._answers.items() for target in targets
        }
        self._varied = False

    def add(self, example: HRMExample, text: TextCheck) -> bool:
        """Count an example, and return whether it is one of the training pairs.

        `text` says whether its completion is an accepted one. Completions that are not are a sample
        of the changes that an agent may make.
        """
        own = pair_hash(example.puzzle_id, example.input_sequence)
        if own not in self._pair_hashes:
            return False
        self._varied |= text is TextCheck.DIFFERENT
        target = hash(example.target_sequence)
        first = self._targets.setdefault(own, target)
        answers = self._answers.get(own)
        if answers is None:
            self._varied |= first != target
        else:
            answer = target_hash(example.target_sequence)
            self._varied |= answer not in answers
            self._missing_answers.discard((own, answer))
        return True

    @property
    def complete(self) -> bool:
        """Whether every training pair occurred, each with all its targets, and unchanged.

        Repeats do not matter.
        """
        if self._varied or self._missing_answers:
            return False
        return len(self._targets) == len(self._pair_hashes) > 0
