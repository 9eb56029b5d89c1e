"""Noise on prompts: what is drawn, and that nothing contradicts what was accepted."""

import math
from random import Random

import pytest
import torch

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.variations import allowed, distance
from hrm.data.vocabulary import vocabulary_of
from hrm.model.batch import Batch, encode
from hrm.model.config import IGNORE_LABEL, HRMConfig
from hrm.training.losses import act_losses
from hrm.training.noise import FOREIGN_MARGIN, NewWords, PromptNoise, varied
from hrm.training.trainer import Trainer, TrainingConfig
from tests.support.networks import tiny_network

CONVERSION = ConversionConfig(version=2, hashed_tokens=50)
CONVERTER = Converter(CONVERSION)
VOCABULARY = vocabulary_of(CONVERSION)
CONFIG = HRMConfig(vocab_size=VOCABULARY.size, seq_len=24, num_puzzle_identifiers=9)
PROMPTS = (
    ("one two three four five six seven eight nine", 1),
    ("plan the load of a busy shop before its sale", 2),
    ("write the review of an incident in the old mill", 2),
    ("ask for the blue key", 3),
    ("ask for the red key", 3),
    ("go", 4),
)
NEW_WORD = NewWords([20, 21], VOCABULARY.words)


@pytest.fixture
def examples() -> Batch:
    return encode([CONVERTER.convert(text, "an answer", row) for text, row in PROMPTS], CONFIG)


def words_of(inputs: torch.Tensor) -> tuple[int, ...]:
    tokens = inputs.tolist()
    return tuple(tokens[1 : tokens.index(VOCABULARY.end)])


def draws(examples: Batch, *, foreign_share: float, count: int = 100) -> list[Batch]:
    noise = PromptNoise(examples, VOCABULARY, changes=3, foreign_share=foreign_share)
    rows = list(range(len(examples)))
    return [noise.draw(rows, examples, Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("changes", range(4))
def test_a_varied_prompt_differs_in_at_most_as_many_words(changes: int) -> None:
    words = tuple(range(20, 32))
    found = [varied(words, changes, NEW_WORD, Random(seed)) for seed in range(200)]
    assert {distance(words, each) for each in found} >= {changes}
    assert max(distance(words, each) for each in found) == changes
    assert all(token in VOCABULARY.words for each in found for token in each)


def test_a_prompt_keeps_a_word_and_fits_the_network() -> None:
    assert all(varied((20,), 3, NEW_WORD, Random(seed)) for seed in range(50))
    longest = tuple(20 for _ in range(98))
    assert max(len(varied(longest, 3, NEW_WORD, Random(seed))) for seed in range(50)) == 98


def test_new_words_are_those_of_prompts_and_any_other() -> None:
    source = Random(0)
    drawn = [NEW_WORD(source) for _ in range(1000)]
    assert 400 < sum(token in {20, 21} for token in drawn) < 650
    assert set(drawn) == set(VOCABULARY.words)


def test_varied_prompts_keep_puzzle_part_and_target(examples: Batch) -> None:
    for drawn in draws(examples, foreign_share=0.0):
        assert torch.equal(drawn.labels, examples.labels)
        assert torch.equal(drawn.puzzle_ids, examples.puzzle_ids)
        assert torch.equal(drawn.inputs[:, 0], examples.inputs[:, 0])
        for varied_, exact in zip(drawn.inputs, examples.inputs, strict=True):
            limit = allowed(words_of(exact), 3)
            assert distance(words_of(varied_), words_of(exact)) <= limit


def test_noise_is_new_each_time_and_spares_some_prompts(examples: Batch) -> None:
    found = [drawn.inputs[0].tolist() for drawn in draws(examples, foreign_share=0.0)]
    assert 2 < found.count(examples.inputs[0].tolist()) < 30
    assert len(set(map(tuple, found))) > 50


def test_prompts_that_are_short_or_too_much_alike_stay_exact(examples: Batch) -> None:
    for drawn in draws(examples, foreign_share=0.0):
        assert torch.equal(drawn.inputs[3:], examples.inputs[3:])


def test_foreign_prompts_are_far_from_all_of_the_puzzle_and_have_no_answer(
    examples: Batch,
) -> None:
    foreign = 0
    for drawn in draws(examples, foreign_share=0.9):
        for row, (text, puzzle) in enumerate(PROMPTS):
            refused = bool(drawn.labels[row].eq(VOCABULARY.end).all())
            assert refused or torch.equal(drawn.labels[row], examples.labels[row])
            foreign += refused
            own = [t for t, p in PROMPTS if p == puzzle]
            words = words_of(drawn.inputs[row])
            near = [CONVERTER.tokenizer.sequence(each)[1:-1] for each in own]
            apart = all(distance(words, each) > allowed(each, 3) + FOREIGN_MARGIN for each in near)
            assert apart == refused, text
    assert 0.5 < foreign / (100 * len(PROMPTS)) < 0.92


def test_the_given_examples_stay_as_they_are(examples: Batch) -> None:
    before = examples.inputs.clone(), examples.labels.clone()
    draws(examples, foreign_share=0.5, count=5)
    assert torch.equal(examples.inputs, before[0])
    assert torch.equal(examples.labels, before[1])


def test_conversion_1_varies_words_with_the_token_of_the_end() -> None:
    converter = Converter(ConversionConfig())
    texts = "send the calendar to the vendor and restart", "an answer"
    encoded = encode([converter.convert(*texts, 1)], HRMConfig(num_puzzle_identifiers=9))
    noise = PromptNoise(encoded, vocabulary_of(ConversionConfig()), changes=2, foreign_share=0.0)
    accepted = converter.tokenizer.sequence(texts[0])[1:-1]
    found = set()
    for seed in range(50):
        tokens = noise.draw([0], encoded, Random(seed)).inputs[0].tolist()
        last = max(place for place, token in enumerate(tokens) if token == 11)
        found.add(distance(tokens[1:last], accepted))
    assert found == {0, 1, 2}


def test_a_resumed_training_draws_the_same_noise(examples: Batch) -> None:
    config = TrainingConfig(steps=4, batch_size=3, prompt_noise=3)

    def trainer() -> Trainer:
        torch.manual_seed(0)
        network = tiny_network(
            vocab_size=VOCABULARY.size, seq_len=24, num_puzzle_identifiers=9, halt_max_steps=2
        )
        noise = PromptNoise(examples, VOCABULARY, changes=3, foreign_share=0.5)
        return Trainer(network, examples, config, noise)

    whole, first, second = trainer(), trainer(), trainer()
    losses = [whole.step().loss for _ in range(4)]
    assert [first.step().loss for _ in range(2)] == losses[:2]
    second.load_state_dict(first.state_dict(), first.averaged_network.state_dict())
    assert [second.step().loss for _ in range(2)] == losses[2:]


def test_rows_with_foreign_prompts_are_told_from_a_part_that_is_an_end(examples: Batch) -> None:
    noise = PromptNoise(examples, VOCABULARY, changes=3, foreign_share=0.5)
    drawn = noise.draw(list(range(len(examples))), examples, Random(0))
    refused = [bool(labels.eq(VOCABULARY.end).all()) for labels in drawn.labels]
    assert set(refused) == {True, False}
    assert noise.refused(drawn.labels).tolist() == refused
    end_alone = torch.full((1, 24), IGNORE_LABEL)
    end_alone[0, 0] = VOCABULARY.end
    assert noise.refused(end_alone).tolist() == [False]


def test_halting_at_a_foreign_prompt_is_never_right() -> None:
    labels = torch.tensor([[2, 2, 2], [2, 2, 2]])
    logits = torch.nn.functional.one_hot(labels, 5).float() * 9
    q_logits = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    answered = act_losses(logits, q_logits, labels, None)
    refused = act_losses(logits, q_logits, labels, None, refused=torch.tensor([True, True]))
    assert refused.tokens == answered.tokens
    expected = sum(math.log1p(math.exp(q)) for q in (3.0, -3.0))
    assert float(refused.q_halt) == pytest.approx(expected)
    mixed = act_losses(logits, q_logits, labels, None, refused=torch.tensor([False, True]))
    assert float(mixed.q_halt) == pytest.approx(2 * math.log1p(math.exp(-3.0)))
