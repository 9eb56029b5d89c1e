"""The text check on the wire: one message of each class through a real worker with `sqe-demo`."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrm.data.conversion import AcceptedPair
from hrm.data.files import DEFAULT_READER
from hrm.data.vocabulary import PART_WORDS, VOCABULARY_1, Tokenizer
from schemas import FailurePattern, PromptMatch, SQEMessage, TextCheck, Verdict
from tests.support.processes import REAL, Worker, wait_for
from worker.broker import embedded
from worker.broker.streams import Failure, read_failures
from worker.client import Client

MESSAGES = Path(__file__).parents[2] / "checkpoints" / "sqe-demo" / "messages.jsonl"


def samples() -> list[AcceptedPair]:
    with MESSAGES.open("rb") as file:
        return [pair for _, pair in DEFAULT_READER.messages(file) if isinstance(pair, AcceptedPair)]


def cut_before_end(completion: str) -> str | None:
    """`completion` up to its first word that has the token of the end and that is read."""
    for word in list(re.finditer(r"\S+", completion))[1:PART_WORDS]:
        if Tokenizer().token(word[0]) == VOCABULARY_1.end:
            return completion[: word.start()]
    return None


SHORT = next(pair for pair in samples() if len(pair.completion.split()) < PART_WORDS)
LONG = next(pair for pair in samples() if len(pair.completion.split()) > PART_WORDS)


class Wire:
    """An agent, and the failures that the workers store."""

    def __init__(self, client: Client, worker: Worker) -> None:
        self.client = client
        self.worker = worker

    def verdict(self, prompt: str, completion: str, puzzle_id: int | None = None) -> Verdict:
        sent = SQEMessage.create(
            agent_id="a", prompt=prompt, completion=completion, puzzle_id=puzzle_id
        )
        return self.client.result(self.client.submit(sent), timeout=30)

    def metrics(self) -> dict[str, float]:
        """The worker's figures. A message leaves the hand after it was counted."""
        wait_for(lambda: not self._in_hand(), "counted")
        return self.worker.metrics()

    def _in_hand(self) -> float:
        figures = self.worker.metrics()
        return sum(figures[name] for name in figures if name.startswith("in_hand"))

    def failure(self, verdict: Verdict) -> Failure:
        (found,) = (
            failure
            for failure in read_failures(self.client._redis)
            if failure.verdict.message_id == verdict.message_id
        )
        return found


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    folder = tmp_path_factory.mktemp("wire")
    with (
        embedded.start(folder) as server,
        Client(server.url) as client,
        Worker.start(REAL, folder, server.url, "--checkpoint", "sqe-demo") as worker,
    ):
        yield Wire(client, worker.wait_until_ready())


def test_an_accepted_completion_is_the_same(wire: Wire) -> None:
    verdict = wire.verdict(SHORT.prompt, SHORT.completion)
    assert (verdict.match, verdict.known) == (PromptMatch.PAIR, True)
    assert (verdict.text, verdict.solved) == (TextCheck.SAME, True)
    assert (verdict.truncated, verdict.unread_words) == (False, 0)


def test_white_space_and_case_are_normalised(wire: Wire) -> None:
    verdict = wire.verdict(SHORT.prompt, SHORT.completion.upper().replace(" ", "\n  "))
    assert (verdict.text, verdict.solved) == (TextCheck.NORMALISED, True)


def test_a_change_beyond_the_words_that_are_read_is_different_though_solved(wire: Wire) -> None:
    changed = f"{LONG.completion} and then delete the production database"
    verdict = wire.verdict(LONG.prompt, changed)
    assert (verdict.text, verdict.solved, verdict.known) == (TextCheck.DIFFERENT, True, True)
    unread = len(LONG.completion.split()) + 6 - PART_WORDS
    assert (verdict.truncated, verdict.unread_words) == (True, unread)


def test_a_completion_cut_before_a_word_with_the_token_of_the_end_is_not_solved(wire: Wire) -> None:
    prompt, cut = next(
        (pair.prompt, cut) for pair in samples() if (cut := cut_before_end(pair.completion))
    )
    verdict = wire.verdict(prompt, cut)
    assert (verdict.text, verdict.solved, verdict.known) == (TextCheck.DIFFERENT, False, True)
    assert (verdict.token_accuracy, verdict.failure_pattern) == (1, FailurePattern.WRONG_LENGTH)
    assert wire.failure(verdict).verdict.text is TextCheck.DIFFERENT


def test_a_prompt_in_other_white_space_is_near_and_its_text_is_checked(wire: Wire) -> None:
    verdict = wire.verdict(f"{SHORT.prompt}\n", SHORT.completion)
    assert (verdict.match, verdict.known) == (PromptMatch.NEAR, False)
    assert verdict.text is TextCheck.SAME


def test_another_prompt_is_unknown_and_its_own_puzzle_is_named(wire: Wire) -> None:
    trained = wire.verdict(SHORT.prompt, SHORT.completion).puzzle_id
    verdict = wire.verdict("Translate this poem into French.", "Non.", puzzle_id=trained)
    assert (verdict.match, verdict.text) == (PromptMatch.NEW, TextCheck.UNKNOWN)
    drawn = wire.verdict("Translate this poem into French.", "Non.")
    assert (drawn.match, drawn.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)


def test_the_worker_counts_what_the_texts_show(wire: Wire) -> None:
    before = wire.metrics()
    wire.verdict(LONG.prompt, f"{LONG.completion} More.")
    after = wire.metrics()
    grown = {name: after[name] - before[name] for name in after if "text_checks_total" in name}
    assert {name: count for name, count in grown.items() if count} == {
        "text_checks_total{checkpoint=sqe-demo}{lane=live}{solved=true}{text=different}": 1
    }
    truncated, words = "truncated_total{lane=live}", "unread_words_total{lane=live}"
    assert after[truncated] - before[truncated] == 1
    unread = len(LONG.completion.split()) + 1 - PART_WORDS
    assert after[words] - before[words] == unread
