"""worker.demo.traffic: accepted, changed and malformed messages in the shares asked for."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import MessageRejected, RejectionReason, parse_message
from worker.demo import traffic as demo
from worker.demo.traffic import CHANGES, Kind, Mixture, Sent, change, read_accepted, traffic

ACCEPTED = [("Plan tests.", " ".join(f"word{i}" for i in range(40))), ("Say one word.", "Done")]


def sample(mixture: Mixture, seed: int = 1, count: int = 400) -> list[Sent]:
    return list(itertools.islice(traffic(ACCEPTED, mixture, seed), count))


def test_every_sound_message_passes_the_contract_and_every_malformed_one_is_refused() -> None:
    for sent in sample(Mixture(changed=0.4, malformed=0.3, words=0.1)):
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
        RejectionReason.EVALUATION_FAILED,
        RejectionReason.NOT_A_MESSAGE,
        RejectionReason.UNKNOWN_TASK,
    }
    assert reasons == set(RejectionReason) - others


def test_the_shares_are_those_asked_for() -> None:
    kinds = Counter(sent.kind for sent in sample(Mixture(0.5, 0.25, 0.1), count=4000))
    assert kinds[Kind.MALFORMED] == pytest.approx(1000, abs=120)
    assert sum(kinds[kind] for kind in CHANGES) == pytest.approx(2000, abs=150)
    assert set(kinds) == set(Kind)


def test_a_known_message_is_an_accepted_one_word_for_word() -> None:
    for sent in sample(Mixture(0, 0, 0.1), count=20):
        message = parse_message(sent.body)
        assert (message.prompt, message.completion) in ACCEPTED


def test_a_seed_repeats_the_texts_and_never_the_ids() -> None:
    mixture = Mixture(0.4, 0.0, 0.1)
    first, second = sample(mixture), sample(mixture)
    texts = [[parse_message(sent.body).completion for sent in run] for run in (first, second)]
    assert texts[0] == texts[1]
    assert len({sent.message_id for sent in first + second}) == 800


@given(
    words=st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=150),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_change_alters_the_share_of_words_asked_for(
    words: list[str], share: float, seed: int
) -> None:
    count = max(1, round(share * min(len(words), 98)))
    lengths = {
        kind: len(change(" ".join(words), kind, share, random.Random(seed)).split())
        for kind in CHANGES
    }
    assert lengths[Kind.INSERTED] == len(words) + count
    assert lengths[Kind.REPLACED] == len(words)
    assert lengths[Kind.DROPPED] == max(1, len(words) - count)


@pytest.mark.parametrize(
    ("text", "error"),
    [("", "holds no message"), ('{"prompt": "p"}\n', "line 1: field 'completion'")],
)
def test_an_unusable_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_text(text)
    with pytest.raises(demo.DemoDataError, match=error):
        read_accepted(file)
