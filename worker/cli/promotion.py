"""`sqe-hrm checkpoint promote`, `rollback` and `history`: which checkpoint is `current`.

Knows the registry, its events and the comparison that a promotion needs; what is compared and how
is said by `hrm.evaluation.promotion`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from hrm.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from hrm.checkpoint.checkpoint import PromotedState, promoted_state
from hrm.checkpoint.names import (
    check_current_is_free,
    find_checkpoint,
    path_in,
)
from hrm.checkpoint.registry import (
    CURRENT,
    REGISTRY,
    Action,
    Event,
    Promoted,
    Registry,
    read_registry,
    record_event,
)
from hrm.data.conversion import Content
from hrm.data.files import LineReader, RefusedLine
from hrm.evaluation.promotion import (
    Comparison,
    Loss,
    PromotionReport,
    compare_on_pairs,
    reads_alike,
)
from hrm.inference.config import Inference
from schemas import HRMExample, SQEHRMError, first_problem
from worker.cli.files import read_with_progress
from worker.cli.options import (
    RULES,
    batch_size_on,
    data_path_option,
    device_option,
    json_option,
    rules_option,
    use_device,
)
from worker.cli.tables.promotion import print_history, print_promotion
from worker.settings import Settings


class RollbackReport(BaseModel):
    """A rollback, as `--json` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Promoted
    replaced: Promoted


class Kept(BaseModel):
    """A promoted checkpoint, and what became of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Promoted
    state: PromotedState


class HistoryReport(Registry):
    """The history, as `--json` prints it: the registry, and the states of its checkpoints."""

    states: tuple[Kept, ...]


@click.command("promote")
@click.argument("new")
@click.option(
    "--over",
    metavar="OLD",
    help="Checkpoint that NEW takes the place of.  [default: current]",
)
@data_path_option(
    "JSONL file of accepted messages to compare on, besides the pairs that OLD holds.",
    required=False,
)
@rules_option("Halting rule under which nothing may be lost.")
@click.option("--accept-losses", is_flag=True, help="Promote NEW whatever is lost.")
@device_option()
@json_option
def promote(
    new: str,
    over: str | None,
    data_path: Path | None,
    halting: str,
    accept_losses: bool,  # noqa: FBT001 - click passes flags by name
    device: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make NEW the checkpoint that is called `current`, if nothing is lost by it.

    NEW and OLD both answer the pairs that OLD was trained on. A pair is lost if OLD solves it and
    NEW does not solve it, or was not trained on it. If any is lost, NEW is refused with exit
    status 1.

    The pairs are those in OLD's folder. A file of accepted messages (--data-path) is needed if OLD
    has none, or if NEW converts messages otherwise; it says what is accepted for its prompts. The
    first promotion compares with nothing and measures NEW alone.
    """
    settings = Settings.from_env(device=device)
    folder = settings.checkpoint_dir
    check_current_is_free(folder)
    pinned = use_device(settings)
    inference = Inference(slots=batch_size_on(pinned, None))
    registry = read_registry(folder)
    current = None if registry is None else registry.current
    candidate = open_checkpoint(new, folder)
    entry = _entry(candidate, find_checkpoint(new, folder), folder)
    if entry == current:
        raise SQEHRMError(f"{entry} is current already: name another checkpoint")
    old = _old(over, candidate, current, folder, accept_losses=accept_losses)
    if accept_losses and data_path is None and old is not None and not _has_pairs(old, candidate):
        old = None  # a person may also do without a comparison
    compared, differ = Comparison((), ()), False
    if old is not None or current is None:
        held, differ = _held(old, candidate, data_path)
        with _lines(data_path, settings) as lines:
            compared = compare_on_pairs(
                old, candidate, lines, held, RULES[halting], inference, pinned.torch_name
            )
        if old is not None and not any(each.pairs for each in compared.figures):
            raise SQEHRMError("nothing to compare on: give accepted messages with --data-path")
    report = PromotionReport(
        promoted=accept_losses or not compared.lost,
        checkpoint=entry,
        replaced=current,
        compared_with=None if old is None else _entry_of(old, over, current, folder),
        data=None if data_path is None else str(data_path),
        conversions_differ=differ,
        decision=_decision(old, current, len(compared.lost)),
        figures=compared.figures,
        lost=compared.lost,
    )
    if report.promoted:
        record_event(
            folder,
            Event(
                time=_now(),
                action=Action.PROMOTE,
                checkpoint=entry,
                replaced=current,
                compared_with=report.compared_with,
                decision=report.decision,
                figures=report.figures,
            ),
        )
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        print_promotion(report)
    if not report.promoted:
        raise SQEHRMError(
            f"{entry.name} is not promoted, because it loses {_pairs(len(report.lost))} of "
            f"{report.compared_with}: {_fix(report)}, or promote it all the same with "
            "--accept-losses"
        )


@click.command("rollback")
@click.option("--to", "to", metavar="NAME", help="An earlier one than that before current.")
@json_option
def rollback(to: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Make the checkpoint `current` again that was so before the last promotion.

    Each further rollback leads one promotion further back. The checkpoint must have the weights
    that were promoted.
    """
    folder = Settings.from_env().checkpoint_dir
    check_current_is_free(folder)
    registry = _registry(folder)
    target = registry.before_current(to)
    state = promoted_state(target, folder)
    if state is not PromotedState.KEPT:
        raise SQEHRMError(
            f"{folder / target.path}: {state} since {target} was promoted: restore it, or go "
            "further back with --to NAME"
        )
    report = RollbackReport(checkpoint=target, replaced=registry.current)
    record_event(
        folder,
        Event(
            time=_now(),
            action=Action.ROLLBACK,
            checkpoint=target,
            replaced=registry.current,
            decision="rolled back",
        ),
    )
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        click.echo(f"current: {report.checkpoint}, was {report.replaced}")


@click.command("history")
@json_option
def history(as_json: bool) -> None:  # noqa: FBT001
    """Show every promotion and rollback, the latest last.

    Checkpoints whose weights are gone, or are not those that were promoted, are marked.
    """
    folder = Settings.from_env().checkpoint_dir
    registry = _registry(folder)
    checkpoints = dict.fromkeys(event.checkpoint for event in registry.history)
    states = {each: promoted_state(each, folder) for each in checkpoints}
    if as_json:
        report = HistoryReport(
            **dict(registry),
            states=tuple(Kept(checkpoint=each, state=state) for each, state in states.items()),
        )
        click.echo(report.model_dump_json(indent=2))
    else:
        print_history(registry, states, str(folder / REGISTRY))


def _registry(folder: Path) -> Registry:
    registry = read_registry(folder)
    if registry is None:
        raise SQEHRMError(
            f"nothing is promoted in {folder.absolute()}: promote one with sqe-hrm checkpoint "
            "promote NAME"
        )
    return registry


def _entry(checkpoint: Checkpoint, path: Path, folder: Path) -> Promoted:
    if checkpoint.name == CURRENT:
        raise SQEHRMError(f"{path}: a checkpoint called {CURRENT} cannot be promoted: rename it")
    place = path_in(path, folder)
    try:
        return Promoted(name=checkpoint.name, path=place, digest=checkpoint.digest)
    except ValidationError as error:
        raise SQEHRMError(f"{str(path)!a}: {first_problem(error)}: rename it") from None


def _entry_of(
    old: Checkpoint, over: str | None, current: Promoted | None, folder: Path
) -> Promoted:
    """The entry of what was compared with, which need not be in the checkpoint folder."""
    if current is not None and current.digest == old.digest:
        return current
    path = find_checkpoint(over or CURRENT, folder)
    return Promoted(name=old.name, path=path.name, digest=old.digest)


def _old(
    over: str | None,
    new: Checkpoint,
    current: Promoted | None,
    folder: Path,
    *,
    accept_losses: bool,
) -> Checkpoint | None:
    """The checkpoint to compare with; None if there is none, or none is left and that is accepted.

    Another than `current` only if that is gone or changed: what it solves must not be passed over.
    """
    if over is None and current is None:
        return None
    problem = None
    try:
        old = None if current is None else open_checkpoint(CURRENT, folder)
    except CheckpointError as error:
        old, problem = None, error
    if over is not None:
        named = open_checkpoint(over, folder)
        if old is not None and named.digest != old.digest:
            raise SQEHRMError(
                f"--over {over}: {current} is current: leave --over out, or go back first with "
                "sqe-hrm checkpoint rollback"
            )
        if named.path.resolve() == new.path.resolve():
            raise SQEHRMError(f"--over {over}: is {new.name} itself: name an older one")
        return named
    if problem is not None and not accept_losses:
        raise problem
    return old


def _held(
    old: Checkpoint | None, new: Checkpoint, data_path: Path | None
) -> tuple[Iterator[HRMExample] | None, bool]:
    """The pairs that the old checkpoint holds (the new one, if there is no old one), and whether
    both read messages differently, so that these pairs say nothing to the new one.
    """
    differ = old is not None and not reads_alike(old.conversion, new.conversion)
    pairs = None if differ else (old or new).accepted_pairs()
    if pairs is None and data_path is None and old is not None:
        raise SQEHRMError(
            f"{new.name} converts messages otherwise than {old.name}, so the pairs of {old.name} "
            "say nothing to it: give the accepted messages with --data-path"
            if differ
            else f"{old.name} holds no accepted pairs: give the accepted messages with --data-path"
        )
    return (None if pairs is None else (each.example for each in pairs)), differ


def _has_pairs(old: Checkpoint, new: Checkpoint) -> bool:
    """Whether the old checkpoint holds pairs that both read alike."""
    return reads_alike(old.conversion, new.conversion) and old.accepted_pairs() is not None


def _decision(old: Checkpoint | None, current: Promoted | None, lost: int) -> str:
    if old is None:
        return "first promotion" if current is None else "not compared: --accept-losses"
    if not lost:
        return "nothing lost"
    return f"accepted loss of {_pairs(lost)}: --accept-losses"


def _fix(report: PromotionReport) -> str:
    if all(each.loss is Loss.NOT_IN_FILE for each in report.lost):
        return "give a file that has all of them"
    # A checkpoint that starts from another one converts messages as that does.
    fix = "train it longer" if report.conversions_differ else "train it from there with --init-from"
    for figures in report.figures:
        if not figures.lost:
            fix += f", promote it with --halting {figures.halting} for workers that have this rule"
    return fix


def _pairs(count: int) -> str:
    return f"{count:,} pair" if count == 1 else f"{count:,} pairs"


@contextmanager
def _lines(path: Path | None, settings: Settings) -> Iterator[Iterator[tuple[int, Content]]]:
    """The messages of the file `path`, each with its index from 0.

    A line that cannot be read ends the command: nobody could tell whether its pair is lost.
    """
    if path is None:
        yield iter(())
        return

    def sound() -> Iterator[tuple[int, Content]]:
        for index, content in LineReader(settings.max_message_bytes).contents(source):
            if isinstance(content, RefusedLine):
                raise SQEHRMError(f"{path}: line {content.number}: {content.detail}")
            yield index, content

    with read_with_progress(path, "Comparing") as source:
        yield sound()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
