"""One prediction from those of all members of an ensemble.

Knows predictions and their logits; how logits are combined, its caller says.

All members run in one engine (`hrm.inference.engine`): an example takes one slot, and every turn
runs one ACT step of all members in one pass over the examples that have not halted there. On a CPU
the threads share the rows of all members as if they were one network's. On a GPU each member's step
is one captured launch on a stream of its own, and the host waits once for all. So the members'
shapes need not agree, and a member that has halted costs nothing.

The members' weights are not stacked into one product. With two members of the default size this
took 0.94, 1.09 and 1.19 times as long on a CPU core (1, 8 and 32 rows), and under `q` it would
compute every member until the last has halted.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrm.inference.engine import Join
from hrm.inference.prediction import Prediction
from schemas import HaltedBy

Combine = Callable[[Tensor], Tensor]
"""Turns the members' logits, float32 (M, S, V), into tokens, int64 (S,)."""


def join_by(weights: Sequence[float], combine: Combine) -> Join:
    """Return the function that joins the members' predictions, for an `Engine` that keeps logits.

    Every member runs an example as it would alone. The tokens come from all members' logits, each
    at the step at which that member halts. `act_steps` and `q_flips` are the largest of any member,
    `halted_by` is `q` if every member halted by it.

    Args:
        weights: One for each member, with sum 1; `q_halt` and `q_continue` are means by them.
        combine: Finds the tokens.
    """

    def mean(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(weights, values, strict=True))

    def join(members: Sequence[Prediction]) -> Prediction:
        logits = torch.stack([each.logits for each in members if each.logits is not None])
        by_q = all(each.halted_by is HaltedBy.Q for each in members)
        return Prediction(
            tokens=tuple(combine(logits).tolist()),
            act_steps=max(each.act_steps for each in members),
            halted_by=HaltedBy.Q if by_q else HaltedBy.MAX_STEPS,
            q_halt=mean([each.q_halt for each in members]),
            q_continue=mean([each.q_continue for each in members]),
            q_flips=max(each.q_flips for each in members),
        )

    return join
