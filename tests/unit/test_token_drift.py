"""The alarm of drifting words, over the messages that the shipped checkpoints were trained on."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.samples import Sample

from hrm.checkpoint.config import ConfigFile
from hrm.data.conversion import Converter
from tests.support.history import History

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

REFUSAL = "I am sorry, but I cannot help with this request. Please ask an operator."

MINUTES = 30


@pytest.mark.parametrize("checkpoint", ["sqe-demo", "sqe-demo-2"])
def test_no_random_hundred_of_accepted_messages_is_a_drift_and_a_hundred_refusals_are(
    checkpoint: str, tmp_path: Path
) -> None:
    folder = CHECKPOINTS / checkpoint
    config = ConfigFile.model_validate_json((folder / "config.json").read_text())
    tokenizer = Converter(config.conversion).tokenizer
    names = tokenizer.vocabulary.token_names
    kinds = tuple(dict.fromkeys(names))
    assert len(kinds) <= 14, "the rule has the degrees of freedom of 14 kinds of tokens"

    def words(completion: str) -> Counter[str]:
        return Counter(names[token] for token in tokenizer.target(completion))

    lines = (CHECKPOINTS / "sqe-demo" / "messages.jsonl").read_text().splitlines()
    accepted = [words(json.loads(line)["completion"]) for line in lines]
    trained: Counter[str] = sum(accepted, Counter())
    chance = random.Random(0)
    live = {
        f"sample {number}": sum(chance.choices(accepted, k=100), Counter[str]())
        for number in range(50)
    }
    live["refusals"] = sum([words(REFUSAL)] * 100, Counter())

    history = History()
    for minute in range(MINUTES):
        samples = [
            Sample("sqe_hrm_tokens_total", labels, counts[token] * minute / (MINUTES - 1))
            for name, counts in live.items()
            for token in kinds
            for labels in [{"checkpoint": name, "token": token}]
        ]
        samples += [
            Sample(
                "sqe_hrm_checkpoint_training_token_ratio",
                {"checkpoint": name, "token": token},
                trained[token] / trained.total(),
            )
            for name in live
            for token in kinds
        ]
        history.scrape({("worker", "w"): samples})
    firing = 'count by (checkpoint) (ALERTS{alertname="SQEHRMTokenDrift", alertstate="firing"})'
    history.check(tmp_path, [(MINUTES - 1, firing, {(("checkpoint", "refusals"),): 1})])
