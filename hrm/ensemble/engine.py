"""Several networks that answer as one: every example goes to all, and their answers are combined.

Knows networks and predictions; how logits are combined, its caller says.

All members are in one engine (`hrm.inference.engine`): an example takes one slot, and every turn
runs one ACT step of all members in one pass over the examples that have not halted there. On a CPU
its threads share the rows of all members as if they were one network's; on a GPU each member's step
is one captured launch, on a stream of its own, and the host waits once for all. So shapes need not
agree, and a member that has halted costs nothing. The weights are not stacked into one product,
which was measured with two members of the default size: on a CPU core it took 0.94, 1.09 and 1.19
times as long (1, 8 and 32 rows), and under `q` it would compute every member until the last has
halted.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrm.inference.engine import Engine
from hrm.inference.prediction import Prediction
from hrm.model.network import HRM
from schemas import HaltedBy

Combine = Callable[[Tensor], Tensor]
"""The members' logits, float32 (M, S, V), to tokens int64 (S,)."""


class EnsembleEngine(Engine):
    """An `Engine` of `networks`, one a member, whose logits `combine` turns into tokens.

    Every member runs an example as it would alone, under `halting` and for at most `max_steps`
    (default: each its own configuration's), and its logits at the step at which it halts are
    combined. Of the prediction,

    - `act_steps` and `q_flips` are the most that a member had;
    - `halted_by` is `q` where every member halted by it;
    - `q_halt` and `q_continue` are means over the members by `weights`, which sum to 1.

    An example fails where one member fails it.
    """

    def __init__(
        self,
        networks: Sequence[HRM],
        weights: Sequence[float],
        combine: Combine,
        *,
        slots: int,
        halting: HaltedBy = HaltedBy.MAX_STEPS,
        max_steps: int | None = None,
        threads: int | None = None,
    ) -> None:
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

        super().__init__(
            networks,
            slots=slots,
            halting=halting,
            max_steps=max_steps,
            keep_logits=True,
            join=join,
            threads=threads,
        )
