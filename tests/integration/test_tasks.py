"""Tasks on the wire: messages that name one, through a real worker with a checkpoint of it."""

import json
from collections.abc import Iterator

import pytest

from hrm.data.config import ENOUGH_PROMPTS
from hrm.training.options import TrainingOptions
from hrm.training.setup import prepare_run
from schemas import PromptMatch, SQEMessage, Verdict
from tests.benchmarks.corpus import TASKS, split
from tests.support.processes import REAL, Worker
from worker.broker import embedded
from worker.client import Client

PARTS = split(TASKS[:1], fillings=ENOUGH_PROMPTS, unseen=9, seed=0)
TINY = TrainingOptions(
    steps=1, batch_size=2, hidden_size=16, num_heads=2, layers=1, puzzle_space=8, measure_every=1
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "accepted.jsonl"
    data.write_text("".join(f"{json.dumps(pair.fields)}\n" for pair in PARTS.trained))
    prepare_run(data, folder / "m", TINY).train()
    with (
        embedded.start(folder) as server,
        Client(server.url) as client,
        Worker.start(REAL, folder, server.url, "--checkpoint", str(folder / "m")) as worker,
    ):
        worker.wait_until_ready()
        yield client


def verdict(client: Client, prompt: str, task: str | None) -> Verdict:
    sent = SQEMessage.create(agent_id="a", prompt=prompt, completion="an answer", task=task)
    return client.result(client.submit(sent), timeout=30)


@pytest.mark.parametrize(
    ("prompt", "task", "match", "puzzle"),
    [
        (PARTS.trained[0].prompt, TASKS[0].name, PromptMatch.PAIR, 8),
        (PARTS.unseen[0].prompt, TASKS[0].name, PromptMatch.PUZZLE, 8),
        (PARTS.unseen[0].prompt, "unknown", PromptMatch.NONE, None),
        (PARTS.unseen[0].prompt, None, PromptMatch.NONE, None),
    ],
    ids=["trained", "new", "unknown task", "no task"],
)
def test_a_message_is_evaluated_with_the_row_of_its_task(
    client: Client, prompt: str, task: str | None, match: PromptMatch, puzzle: int | None
) -> None:
    found = verdict(client, prompt, task)
    assert found.match is match
    assert found.known is (match is PromptMatch.PAIR)
    assert found.puzzle_id == puzzle if puzzle is not None else found.puzzle_id < 8
