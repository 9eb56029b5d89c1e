"""Two checkpoints in one engine, compared with two engines one after the other."""

from contextlib import ExitStack, closing
from statistics import median

from hrm.checkpoint import load_checkpoint
from hrm.ensemble.ensemble import Ensemble
from hrm.ensemble.join import join_by
from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from schemas import HaltedBy
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import engine_run, interleaved, median_ratio
from tests.benchmarks.setting import THREADS, Setting, known_examples

TITLE = "Ensemble of two"


def run(setting: Setting) -> str:
    # Under q the second member needs many more steps than the first, which other benchmarks use.
    counts = {HaltedBy.MAX_STEPS: setting.examples, HaltedBy.Q: setting.halting_examples // 4}
    ensemble = Ensemble([load_checkpoint(path) for path in setting.checkpoints])
    rows = []
    for halting, count in counts.items():
        separate, joined = _rates(setting, ensemble, halting, count)
        ratio = median_ratio(joined, separate)
        rates = [f"{median(each):,.1f}" for each in (separate, joined)]
        rows.append([str(halting), f"{count:,}", *rates, f"{ratio:.2f}"])
    return paragraphs(
        f"{ensemble.name}, known messages, float32, {setting.slots} slots; rates in examples "
        f"answered by both members per second, medians of {setting.rounds} paired runs.",
        table(["rule", "examples per run", "one after the other", "one engine", "ratio"], rows),
    )


def _rates(
    setting: Setting, ensemble: Ensemble, halting: HaltedBy, count: int
) -> list[list[float]]:
    """Rates of two engines one after the other, and of one engine, by round."""
    slots, members = setting.slots, ensemble.members
    examples = known_examples(members[0], count)
    inference = Inference(slots=slots, halting=halting)
    with ExitStack() as stack:
        networks = [
            [inference.network(member, setting.device) for member in members] for _ in range(2)
        ]
        engines = [
            stack.enter_context(
                closing(Engine(network, slots=slots, halting=halting, threads=THREADS))
            )
            for network in networks[0]
        ]
        joined = stack.enter_context(
            closing(
                Engine(
                    networks[1],
                    slots=slots,
                    halting=halting,
                    threads=THREADS,
                    keep_logits=True,
                    join=join_by(ensemble.weights, ensemble.combine),
                )
            )
        )
        return interleaved(
            [
                lambda: 1 / sum(1 / engine_run(engine, examples).rate for engine in engines),
                lambda: engine_run(joined, examples).rate,
            ],
            setting.rounds,
        )
