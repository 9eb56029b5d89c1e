"""Damaged inputs are accepted or refused, never anything else: the short form of `make fuzz`."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import inputs, samples
from tests.fuzz.connections import HTTP
from tests.fuzz.delivery import DELIVERY, damaged_task, expected
from tests.fuzz.inputs import INPUTS, quiet
from tests.fuzz.mutation import Mutator, Raw, written
from tests.fuzz.runs import Check, Input, is_proper, simply

CASES = 400


@pytest.mark.parametrize("tried", [*INPUTS, HTTP], ids=lambda each: each.name)
def test_a_damaged_input_is_accepted_or_refused(tried: Input) -> None:
    with quiet():
        tally = tried.run(0, range(CASES))
    assert not tally.findings
    assert tally.accepted
    assert tally.refused
    assert tally.accepted + tally.refused.total() == tally.cases == CASES


def test_sound_samples_are_accepted() -> None:
    mutators = [Mutator(str(number)) for number in range(50)]
    assert {inputs.read(samples.item(each)) for each in mutators} == {None}
    assert {inputs.evaluate(samples.message(each)) for each in mutators} == {None}
    lines = [written(samples.line(each)).encode() for each in mutators]
    messages = [line for line in lines if b"input_sequence" not in line]
    assert {inputs.read_lines(line) for line in messages} == {None}
    assert {inputs.READER.content(line) for line in lines if line not in messages}


@pytest.mark.parametrize("tried", [*INPUTS, HTTP, DELIVERY], ids=lambda each: each.name)
def test_a_case_follows_from_seed_and_number(tried: Input) -> None:
    assert tried.case(1, 2) == tried.case(1, 2)
    assert [tried.case(1, number) for number in range(9)] != [
        tried.case(2, number) for number in range(9)
    ]


def test_what_comes_of_an_item_is_known_beforehand() -> None:
    dues = [expected(damaged_task(Mutator(str(number)))) for number in range(200)]
    assert all(due.verdicts or due.dead_letters or len(due.names) == 1 for due in dues)
    assert any(due.verdicts for due in dues)
    assert any(due.dead_letters > 1 for due in dues)


def test_a_mutator_writes_what_json_cannot_hold() -> None:
    value = {"a": Raw("NaN"), "b": [1, Raw("[[")]}
    assert written(value) == '{"a": NaN, "b": [1, [[]}'


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("field 'a': remove it", True),
        ("", False),
        ("two\nlines", False),
        ("x" * 5000, False),
        ("confidential" * 20, False),
    ],
)
def test_an_error_is_one_short_line_without_the_text(text: str, is_good: bool) -> None:  # noqa: FBT001
    assert is_proper(text) is is_good


@contextmanager
def failing() -> Iterator[Check]:
    def check(case: str) -> str | None:
        if case == "bad":
            raise ValueError("a bug")
        return None if case == "sound" else "refused"

    yield check


def test_a_finding_is_shown_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(mutator: Mutator) -> str:
        case: str = mutator.random.choice(("bad", "sound", "unsound"))
        return case

    monkeypatch.setattr(command, "ALL", {"one": Input("one", 3, make, failing)})
    assert command.main(["--seed", "5", "--cases", "20", "--only", "one"]) == 1
    shown = capsys.readouterr().out
    assert "seed 5, 20 cases" in shown
    again = shown.partition(".venv/bin/python -m tests.fuzz ")[2].splitlines()[0]
    assert command.main(again.split()) == 1
    assert "ValueError: a bug" in capsys.readouterr().out


def test_a_run_without_findings_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = [
        Input(name, share, lambda _: "sound", simply(lambda _: None))
        for name, share in (("one", 3), ("two", 1))
    ]
    monkeypatch.setattr(command, "ALL", {each.name: each for each in sound})
    assert command.main(["--cases", "100", "--only", "one", "two"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:5] for row in rows[-3:]] == [
        ["one", "75", "75", "0", "0"],
        ["two", "25", "25", "0", "0"],
        ["all", "100", "100", "0", "0"],
    ]
