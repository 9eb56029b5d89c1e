"""worker.demo.traffic: accepted, changed and malformed messages in the shares asked for."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from hrm.data.changes import ChangeKind
from hrm.data.texts import normalised
from schemas import MessageRejected, RejectionReason, parse_message
from worker.demo import traffic as demo
from worker.demo.traffic import CHANGES, Kind, Mixture, Sent, read_accepted, traffic

ACCEPTED = [("Plan tests.", " ".join(f"word{i}" for i in range(140))), ("Say one word.", "Done")]


def sample(mixture: Mixture, seed: int = 1, count: int = 400) -> list[Sent]:
    return list(itertools.islice(traffic(ACCEPTED, mixture, seed), count))


def test_every_sound_message_passes_the_contract_and_every_malformed_one_is_refused() -> None:
    for sent in sample(Mixture(changed=0.4, malformed=0.3)):
        if sent.kind is Kind.MALFORMED:
            with pytest.raises(MessageRejected):
                _refuse(sent.body)
        else:
            assert parse_message(sent.body).message_id == sent.message_id


def _refuse(body: str) -> None:
    """Refuse as a worker does; it also checks the puzzle id against the checkpoint's table."""
    if parse_message(body).puzzle_id == 10**9:
        raise MessageRejected(RejectionReason.PUZZLE_OUT_OF_RANGE, "")


def test_the_malformed_messages_are_refused_for_different_reasons() -> None:
    reasons = set()
    for make in demo.MALFORMED:
        try:
            _refuse(make("id", "Plan tests.", "Done"))
        except MessageRejected as rejected:
            reasons.add(rejected.reason)
    # The others do not come from the text of a message.
    others = {
        RejectionReason.DELIVERED_TOO_OFTEN,
        RejectionReason.EVALUATION_FAILED,
        RejectionReason.EXPIRED,
        RejectionReason.NOT_A_MESSAGE,
        RejectionReason.UNKNOWN_TASK,
        RejectionReason.UNSUPPORTED_OPTION,
    }
    assert reasons == set(RejectionReason) - others


def test_the_shares_are_those_asked_for() -> None:
    kinds = Counter(sent.kind for sent in sample(Mixture(0.5, 0.25), count=4000))
    assert kinds[Kind.MALFORMED] == pytest.approx(1000, abs=120)
    assert sum(kinds[kind] for kind in CHANGES) == pytest.approx(2000, abs=150)
    assert set(kinds) == {*Kind, *CHANGES}


def test_a_known_message_is_an_accepted_one_word_for_word() -> None:
    for sent in sample(Mixture(0, 0), count=20):
        message = parse_message(sent.body)
        assert (message.prompt, message.completion) in ACCEPTED


def test_a_seed_repeats_the_texts_and_never_the_ids() -> None:
    mixture = Mixture(0.4, 0.0)
    first, second = sample(mixture), sample(mixture)
    texts = [[parse_message(sent.body).completion for sent in run] for run in (first, second)]
    assert texts[0] == texts[1]
    assert len({sent.message_id for sent in first + second}) == 800


def test_a_changed_message_differs_in_one_place_anywhere_in_its_text() -> None:
    places: dict[ChangeKind, set[int]] = {kind: set() for kind in CHANGES}
    long = ACCEPTED[0][1]
    for sent in sample(Mixture(changed=1, malformed=0), count=4000):
        message = parse_message(sent.body)
        accepted = dict(ACCEPTED)[message.prompt]
        assert normalised(message.completion) != normalised(accepted)
        assert isinstance(sent.kind, ChangeKind)
        if accepted == long:
            pairs = zip(long.split(), message.completion.split(), strict=False)
            places[sent.kind].add(next((i for i, (a, b) in enumerate(pairs) if a != b), -1))
    assert places[ChangeKind.ENDING_APPENDED] == {-1}
    for kind in (ChangeKind.WORD_REPLACED, ChangeKind.NOT_INSERTED, ChangeKind.NUMBER_TIMES_10):
        assert min(places[kind]) < 10
        assert max(places[kind]) > 130


def test_a_text_is_changed_in_a_way_that_it_has_a_place_for() -> None:
    mixture = Mixture(changed=1, malformed=0)
    sent = itertools.islice(traffic([("Say one word.", "Done")], mixture, 1), 200)
    # There is no other word to take, no number, and nothing to cut off.
    assert {each.kind for each in sent} == {ChangeKind.NOT_INSERTED, ChangeKind.ENDING_APPENDED}


@pytest.mark.parametrize(
    ("text", "error"),
    [("", "holds no message"), ('{"prompt": "p"}\n', "line 1: field 'completion'")],
)
def test_an_unusable_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_text(text)
    with pytest.raises(demo.DemoDataError, match=error):
        read_accepted(file)
