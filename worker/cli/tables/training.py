"""The output of `sqe-hrm train`: a bar of the steps, and a line for each measurement.

Knows the console, and what `hrm.training` reports; computes nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.evaluation.statistics import Share, ShareOf
from hrm.training.fit import Measurement
from hrm.training.plan import (
    MUCH_SHARED,
    default_rows,
    default_steps,
    episodes_of,
    few_episodes,
)
from hrm.training.run import TrainingRun
from hrm.training.trainer import StepReport
from worker.cli.tables.style import interval, number, percent

ESTIMATE_AFTER = 20.0
"""Seconds of training from which the rest is estimated: the first steps are slower."""

EXACT_MINUTES = 10
"""Minutes from which nobody asks for seconds."""


class TrainingDisplay:
    """Prints lines, which are never wrapped, and shows a bar if stderr is a terminal."""

    def __init__(
        self, bar: Progress, run: TrainingRun, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bar = bar
        self._run = run
        self._clock = clock
        self._task = bar.add_task("", total=self._steps, completed=run.trainer.step_count)
        self._loss = 0.0
        self._halted = ""
        self._first: StepReport | None = None
        self._since = 0.0
        self._estimated = False

    @property
    def _steps(self) -> int:
        return self._run.trainer.config.steps

    def say(self, line: str) -> None:
        """Print `line`."""
        # Wrapped lines in a log can be neither searched nor read by a program.
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_step(self, report: StepReport) -> None:
        """Move the bar. If no example halted, the figures of the last ones that did remain."""
        self._loss = report.loss
        if report.accuracy is not None:
            self._halted = (
                f"  tokens {percent(report.accuracy, 0):>5}  solved {percent(report.solved, 0):>5}"
                f"  Q right {percent(report.q_accuracy if report.solved else None, 0):>5}"
                f"  ACT steps {number(report.act_steps):>4}"
            )
        self._bar.update(
            self._task,
            completed=report.step,
            description=f"loss {report.loss:.3f}{self._halted}",
        )
        if self._first is None:
            # Its own time is left out: with it come allocations and compilations.
            self._first, self._since = report, self._clock()
        elif not self._estimated and self._clock() - self._since >= ESTIMATE_AFTER:
            self._estimated = True
            left = self._left(report.step)
            if left is not None:
                line = f"about {duration(left)} for the other {self._steps - report.step:,} steps"
                if self._run.trainer.device.type == "cpu":
                    threads = torch.get_num_threads()
                    line += f" on {threads} thread{'s' if threads > 1 else ''}"
                self.say(line)

    def _left(self, step: int) -> float | None:
        """Seconds until the last step, at the mean speed so far, measurements included."""
        if self._first is None or step <= self._first.step or step >= self._steps:
            return None
        return (self._clock() - self._since) / (step - self._first.step) * (self._steps - step)

    def on_measurement(self, measurement: Measurement) -> None:
        """Print the figures of `measurement`."""
        figures = summary(measurement, len(self._run.training))
        times, left = duration(self._run.seconds), self._left(measurement.step)
        if left is not None:
            times += f", {duration(left)} left"
        self.say(f"step {measurement.step:5d}  loss {self._loss:.3f}  {times}  {figures}")


@contextmanager
def training_display(run: TrainingRun) -> Iterator[TrainingDisplay]:
    """A display for what is left of `run`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield TrainingDisplay(bar, run)


def plan_lines(run: TrainingRun) -> list[str]:
    """The length of the run in a line, and a warning for each way in which it is too small."""
    trainer = run.trainer
    noise = run.options.prompt_noise > 0
    size = len(trainer.examples), trainer.batch_size, trainer.network.config.halt_max_steps
    episodes = episodes_of(trainer.config.steps, *size)
    unit = "part of a message" if len(trainer.examples) > len(run.training) else "message"
    length = f"{trainer.config.steps:,} steps, {number(episodes)} episodes for each {unit}"
    lines = [f"{length}, seed {run.options.seed}"]
    if trainer.step_count:
        return lines
    few = few_episodes(len(trainer.examples), noise=noise)
    if episodes < few:
        lines.append(
            f"warning: {number(episodes)} episodes are few, these messages need {few:.0f} or more: "
            f"give --steps {default_steps(*size, noise=noise)}"
        )
    sharing = run.about["prompts_sharing_rows"] / run.about["prompts"]
    if sharing > MUCH_SHARED:
        rows = default_rows(run.about["prompts"])
        fix = f"give --puzzle-space {rows}"
        if run.options.init_from is not None:
            fix = "start without --init-from to have more rows"
        lines.append(
            f"warning: {percent(sharing, 0)} of the prompts share a puzzle row with another: {fix}"
        )
    return lines


def duration(seconds: float) -> str:
    """`seconds` in two units at most, as a person would say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= EXACT_MINUTES:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def start_line(run: TrainingRun, device: str) -> str:
    """Describe the run in one line: its messages, network, data type and device."""
    network = run.trainer.network
    held_out = f", {len(run.held_out)} held out" if run.held_out is not None else ""
    further, left_out = run.about.get("further_answers"), run.about.get("lines_left_out")
    data = f", {further} of them further answers to a prompt" if further else ""
    data += f", {left_out} contradicting lines left out" if left_out else ""
    for side in ("prompts", "completions"):
        if cut := run.about.get(f"truncated_{side}"):
            data += f", {cut} with {side} longer than the model reads"
    if tasks := run.about.get("tasks"):
        data += f", {tasks} tasks"
        if found := run.about["tasks_found"]:
            data += f" ({found} found)"
    if changes := run.trainer.config.prompt_noise:
        varied, prompts = run.about["varied_prompts"], run.about["prompts"]
        data += f", {varied} of {prompts} prompts varied by up to {changes} words"
    options = run.options
    if len(run.training) > options.measure_sample:
        held_out += f"; {options.measure_sample} measured until the end"
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    dtype = str(network.forward_dtype).removeprefix("torch.")
    parts = len(run.training.parts)
    in_parts = f" in {parts} parts" if parts > len(run.training) else ""
    return (
        f"{_messages(run)}{in_parts}{data}{held_out}{_forgotten(run)}; "
        f"{numbers:,} numbers in the network; {dtype} activations on {device}, measured in float32"
    )


def _messages(run: TrainingRun) -> str:
    """The numbers of new and of replayed messages."""
    parent = run.parent
    if parent is None or not parent.replayed:
        return f"{len(run.training)} messages"
    new = len(run.training) - parent.replayed
    return f"{new} new messages, {parent.replayed} replayed from {parent.name}"


def _forgotten(run: TrainingRun) -> str:
    """The prompts that the run forgets of the checkpoint that it starts from."""
    parent = run.parent
    if parent is None or parent.forgotten == 0:
        return ""
    prompts = "all prompts" if parent.forgotten is None else f"{parent.forgotten} prompts"
    return f"; {prompts} that {parent.name} knows become unknown"


def apart_lines(run: TrainingRun) -> list[str]:
    """For each halting rule, what is solved of the new messages and of those that were replayed."""
    if run.solved_apart is None:
        return []
    new, replayed = run.solved_apart["new"], run.solved_apart["replayed"]
    return [
        f"{rule}: new {new[rule].count} of {new[rule].of}, "
        f"replayed {replayed[rule].count} of {replayed[rule].of}"
        for rule in new
    ]


def summary(measurement: Measurement, messages: int) -> str:
    """The figures of a measurement, in one line; `messages` are trained on in all."""
    # Those held out are a sample of the messages to come. The training messages are all there is.
    counted = measurement.training.q.examples == messages
    line = _both(measurement.training, Share.counted if counted else Share.measured)
    if measurement.held_out is None:
        return line
    return f"{line}  |  held out  {_both(measurement.held_out, Share.measured)}"


def _both(rules: BothRules, share: ShareOf) -> str:
    return f"max_steps: {_figures(rules.max_steps, share)}  q: {_figures(rules.q, share)}"


def _figures(figures: RuleFigures, share: ShareOf) -> str:
    rate = share(figures.solved, figures.examples)
    within = "" if rate.low is None else f" ({interval(rate, 0)})"
    # While nothing is solved, the Q head is right by refusing all.
    q_right = percent(figures.q_accuracy if figures.solved else None)
    return (
        f"{figures.solved}/{figures.examples} solved{within}, "
        f"tokens {percent(figures.token_accuracy)}, Q right {q_right}, "
        f"{number(figures.mean_act_steps)} steps"
    )
