"""The memory of all networks of an engine: one lane each, with fewer slots if the device has less.

Knows lanes, threads and the device's memory; nothing of futures or queues.
"""

import contextlib
import gc
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic

import torch

from hrm.inference.lane import Answers, Lane, Occupant, is_out_of_memory
from hrm.inference.prediction import DeviceMemoryError
from hrm.inference.threads import RowWork, Team
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample

logger = logging.getLogger(__name__)


RESERVE_SHARE = 8
"""On a GPU, one slot in reserve for this many slots.

There a step takes time in proportion to its rows once they are many, and the examples in slots go
on beside urgent ones, so slots become free soon. On a CPU they rest meanwhile, so urgent examples
get as many slots as they have without others."""


class Lanes(Generic[Occupant]):
    """One lane for each network, each with a row for every slot and for those in reserve.

    Only one thread may use them, in inference mode.

    Args:
        networks: The networks, in evaluation mode and on one device.
        slots: Slots without those in reserve. If the device's memory does not suffice, half of
            them, and so on.
        halting: The rule by which rows halt.
        keep_logits: Whether predictions carry their logits.
        threads: CPU threads that share the rows of all lanes.

    Raises:
        DeviceMemoryError: The device has no room for a single slot.
    """

    def __init__(
        self,
        networks: Sequence[HRM],
        slots: int,
        *,
        halting: HaltedBy,
        keep_logits: bool,
        threads: int,
    ) -> None:
        self._is_cpu = networks[0].H_init.device.type == "cpu"
        self.slots = slots
        self.reserve = self._reserve_of(slots)
        """Slots in reserve, beside the others."""
        self.reductions = 0
        """How often the slots became fewer."""
        self.threads = threads
        self._networks = networks
        self._halting = halting
        self._keep_logits = keep_logits
        self._team = Team(threads)
        self._lanes: list[Lane[Occupant]] = []
        self.allocate()

    @property
    def is_asynchronous(self) -> bool:
        """Whether the host is free while the device computes."""
        return self._lanes[0].is_asynchronous

    @property
    def needs_threads(self) -> bool:
        """Whether the host's threads compute the steps."""
        return self._lanes[0].needs_threads

    def admit(
        self,
        occupants: Sequence[Occupant],
        examples: Sequence[HRMExample],
        limits: Sequence[Sequence[int]],
    ) -> None:
        """Give each of `occupants` a row in every lane, at the start of its first ACT step.

        Args:
            occupants: New owners of rows.
            examples: The example of each.
            limits: For each network, how many steps each occupant gets at most.
        """
        for lane, own in zip(self._lanes, limits, strict=True):
            lane.admit(occupants, examples, own)

    def launch(
        self,
        chosen: Sequence[Occupant] | None = None,
        *,
        goes_on: Callable[[], bool] | None = None,
    ) -> Sequence[Occupant] | None:
        """Begin one ACT step over all rows of all lanes, or on a CPU over those of `chosen`.

        On a CPU the threads share the rows of all lanes in one pass.

        Args:
            chosen: Occupants whose rows are computed; None: all.
            goes_on: If given, `chosen` are computed one per thread at a time, and those left are
                not once this returns False.

        Returns:
            The occupants whose rows were computed; None: all.
        """
        if chosen is not None and goes_on is not None:
            first, chosen = chosen, []
            for start in range(0, len(first), self.threads):
                if start and not goes_on():
                    break
                part = first[start : start + self.threads]
                self._team.run(self._begin(part))
                chosen += part
            self._begin(chosen)
        elif self.needs_threads:
            self._team.run(self._begin(chosen))
        else:
            self._begin(chosen)
            for lane in self._lanes:
                lane.replay()
        for lane in self._lanes:
            lane.send()
        return chosen

    def finish(self) -> Iterator[tuple[int, Answers[Occupant]]]:
        """Wait for the step; yield the number and the answers of each network where rows halted."""
        for number, lane in enumerate(self._lanes):
            answers = lane.finish()
            if answers is not None:
                yield number, answers

    def remove(self, occupants: Collection[Occupant]) -> None:
        """Free the rows of `occupants` in every lane."""
        for lane in self._lanes:
            lane.remove(occupants)

    def clear(self) -> None:
        """Free all rows, and forget a step that was begun."""
        for lane in self._lanes:
            lane.clear()

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def can_shrink(self, in_work: int) -> bool:
        """Whether fewer slots may suffice, if the memory did not for `in_work` examples."""
        return self.slots > 1 or in_work > 1

    def shrink(self, in_work: int) -> None:
        """Let go of all memory, and halve the slots. `allocate` then takes memory for these.

        If there is only one, the one in reserve goes.

        Args:
            in_work: Examples that had a slot when the memory did not suffice.
        """
        # A GPU's memory is taken for all slots in advance, a CPU's for those in work.
        self._reduce((self.slots if self.is_asynchronous else min(self.slots, in_work)) // 2)

    @torch.inference_mode()
    def allocate(self) -> None:
        """Take the device's memory, for fewer slots if it does not suffice.

        Raises `DeviceMemoryError` if not even one slot finds room.
        """
        while not self._lanes:
            if self.reductions:
                gc.collect()
                # This only helps, and after a capture that broke off torch 2.11 cannot do it.
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
            try:
                self._lanes = [
                    Lane(
                        network,
                        self.slots + self.reserve,
                        halting=self._halting,
                        keep_logits=self._keep_logits,
                    )
                    for network in self._networks
                ]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.slots + self.reserve == 1:
                    raise DeviceMemoryError(
                        "the device's memory does not suffice for a single example: end what else "
                        "uses it, or take another device"
                    ) from None
            if (
                not self._lanes
            ):  # outside of `except`: a traceback's frames hold the device's memory
                self._reduce(self.slots // 2)

    def _begin(self, chosen: Collection[Occupant] | None) -> list[tuple[RowWork, int]]:
        return [work for lane in self._lanes for work in lane.begin(chosen)]

    def _reduce(self, slots: int) -> None:
        """Go on with `slots`; 0 for a single one, without a reserve."""
        before = self.slots, self.reserve
        self.slots = max(1, slots)
        self.reserve = self._reserve_of(slots)
        logger.warning(
            "the device's memory does not suffice for %d slots and %d in reserve: going on with %d "
            "and %d",
            *before,
            self.slots,
            self.reserve,
        )
        self.reductions += 1
        self._lanes = []

    def _reserve_of(self, slots: int) -> int:
        if self._is_cpu or not slots:
            return slots
        return max(1, slots // RESERVE_SHARE)
