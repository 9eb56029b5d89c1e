"""The output of `sqe-hrm train`: a bar of the steps, and a line for each measurement.

Knows the console, and what `hrm.training` reports; computes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.evaluation.statistics import Share, ShareOf
from hrm.training.fit import Measurement
from hrm.training.run import TrainingRun
from hrm.training.trainer import StepReport
from worker.cli.tables.style import interval, number, percent


class TrainingDisplay:
    """Prints lines, which are never wrapped, and shows a bar if stderr is a terminal."""

    def __init__(self, bar: Progress, steps: int, done: int, messages: int) -> None:
        self._bar = bar
        self._messages = messages
        self._task = bar.add_task("", total=steps, completed=done)
        self._loss = 0.0
        self._halted = ""

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

    def on_measurement(self, measurement: Measurement) -> None:
        """Print the figures of `measurement`."""
        figures = summary(measurement, self._messages)
        self.say(f"step {measurement.step:5d}  loss {self._loss:.3f}  {figures}")


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
        trainer = run.trainer
        yield TrainingDisplay(bar, trainer.config.steps, trainer.step_count, len(run.training))


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
        data += f", {varied} prompts varied by up to {changes} words"
        if varied < prompts:
            data += f", {prompts - varied} too short or too much like another of their puzzle"
    options = run.options
    if len(run.training) > options.measure_sample:
        held_out += f"; {options.measure_sample} measured until the end"
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    dtype = str(network.forward_dtype).removeprefix("torch.")
    parts = len(run.training.parts)
    in_parts = f" in {parts} parts" if parts > len(run.training) else ""
    return (
        f"{len(run.training)} messages{in_parts}{data}{held_out}; "
        f"{numbers:,} numbers in the network; {dtype} activations on {device}, measured in float32"
    )


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
