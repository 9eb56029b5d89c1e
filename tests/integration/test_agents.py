"""The figures of each agent in Redis: exact, bounded, and not to be avoided as a false canary."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import redis

from schemas import Verdict
from tests.support.stubs import message, verdict
from worker.broker.contract import CANARY_AGENT
from worker.broker.keys import AGENTS, CANARIES
from worker.delivery.agents import MOST_AGENTS, Counted
from worker.delivery.outcomes import Answer, Delivery, Entry
from worker.delivery.scripts import load_scripts
from worker.settings import Settings

RULES = Delivery(Settings(), worker="w:1")


def evaluated(agent: str, prompt: str = "solve", *, live: bool = True) -> Answer:
    sent = message(prompt).model_copy(update={"agent_id": agent})
    return RULES.verdict(verdict(sent), sent, None, live=live)


def store_all(
    store: redis.Redis, answers: Iterable[Answer], token: str | None = None
) -> Sequence[int]:
    """Store answers in one attempt; returns how each counts."""
    entries = [Entry(each, each.outcome.model_dump_json()) for each in answers]
    with store.pipeline(transaction=False) as pipe:
        RULES.store(pipe, entries, token or uuid.uuid4().hex, "name")
        (replies,) = pipe.execute()
    counted: Sequence[int] = replies
    return counted


@pytest.fixture
def store(store: redis.Redis) -> redis.Redis:
    load_scripts(store)
    return store


def figures(store: redis.Redis) -> dict[str, int]:
    found: dict[Any, Any] = store.hgetall(AGENTS)
    named = {name.decode(): value for name, value in found.items()}
    return {name: int(value) for name, value in named.items() if " " in name}


def test_each_live_message_is_counted_for_its_agent(store: redis.Redis) -> None:
    answers = [*(evaluated("a") for _ in range(3)), evaluated("a", "fail"), evaluated("b")]
    assert store_all(store, answers) == [Counted.FIRST] * 5
    expected = {"a other true solved": 3, "a other true unsolved": 1, "b other true solved": 1}
    assert figures(store) == expected
    assert store_all(store, answers) == [Counted.REPEATED] * 5
    assert figures(store) == expected, "delivered again"


def test_an_attempt_whose_reply_was_lost_adds_nothing(store: redis.Redis) -> None:
    answers = [evaluated("a"), evaluated("a")]
    for _ in range(2):
        assert store_all(store, answers, "token") == [Counted.FIRST] * 2
    assert figures(store) == {"a other true solved": 2}


def test_a_backfill_and_a_refusal_are_no_agents_evaluation(store: redis.Redis) -> None:
    store_all(store, [evaluated("a", live=False)])
    assert not store.exists(AGENTS)


def test_the_first_agents_keep_their_places_and_a_flood_of_others_takes_no_memory(
    store: redis.Redis,
) -> None:
    first = [f"agent-{number}" for number in range(MOST_AGENTS)]
    store_all(store, map(evaluated, first))
    for start in range(0, 2_000, 500):
        store_all(store, [evaluated(f"hostile-{start + number}") for number in range(500)])
    store_all(store, map(evaluated, first))
    expected = dict.fromkeys((f"{agent} other true solved" for agent in first), 2)
    assert figures(store) == expected | {"other other true solved": 2_000}
    assert store.hlen(AGENTS) == 2 * MOST_AGENTS + 2
    assert store.hget(AGENTS, "#") == b"%d" % MOST_AGENTS


def test_an_agent_called_other_is_counted_with_the_others(store: redis.Redis) -> None:
    first = [f"agent-{number}" for number in range(MOST_AGENTS)]
    store_all(store, map(evaluated, first))
    store_all(store, map(evaluated, ["other", "late", "other"]))
    assert figures(store)["other other true solved"] == 3


def test_a_canary_is_no_agents_and_only_who_is_expected_is_one(store: redis.Redis) -> None:
    real, false = evaluated(CANARY_AGENT), evaluated(CANARY_AGENT, "fail")
    assert isinstance(real.outcome, Verdict)
    store.sadd(CANARIES, real.outcome.message_id)
    assert store_all(store, [real, false]) == [Counted.CANARY, Counted.FIRST]
    assert figures(store) == {f"{CANARY_AGENT} other true unsolved": 1}
    assert store_all(store, [real]) == [Counted.REPEATED]


@pytest.mark.parametrize("key", [AGENTS, CANARIES])
def test_rubbish_in_the_place_of_figures_stops_no_outcome(store: redis.Redis, key: str) -> None:
    store.set(key, "rubbish")
    assert store_all(store, [evaluated("a"), evaluated(CANARY_AGENT)]) == [Counted.FIRST] * 2
    assert len(store.keys("celery-task-meta-*")) == 2
