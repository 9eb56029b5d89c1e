"""Checkpoints as a whole: how they are saved, their digest, and their training record."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from hrm.checkpoint import (
    CheckpointError,
    load_checkpoint,
    pair_hash,
    read_checkpoint,
    save_checkpoint,
)
from hrm.checkpoint.checkpoint import RECORDS
from hrm.checkpoint.config import tensor_shapes
from hrm.checkpoint.record import Variations
from hrm.data.config import ConversionConfig
from tests.support.checkpoints import (
    ACCEPTED,
    ANSWERS,
    FIRST_RECORD,
    RECORD,
    SEVERAL,
    SHA256,
    TINY,
    refusal,
    saved,
    state_of,
    store,
    write_config,
)

# Saving, and loading what was saved.


def test_a_saved_checkpoint_loads_as_it_was(tmp_path: Path) -> None:
    state, folder = state_of(TINY), tmp_path / "run" / "first"
    save_checkpoint(folder, state, TINY, SHA256, RECORD)
    loaded = load_checkpoint(folder)
    assert loaded.name == "first"
    assert loaded.path == folder / "model.safetensors"
    assert loaded.config == TINY
    assert loaded.conversion == SHA256
    sources = dict(loaded.config_sources)
    for name in ("version", "token_head"):  # not written, as before there was a choice
        assert sources.pop(name) == "default"
    assert set(sources.values()) == {"config.json"}
    assert loaded.training == RECORD
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[key], state[key]) for key in state)


def test_a_saved_checkpoint_consists_of_three_files(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_checkpoint(folder, state_of(TINY), TINY, SHA256, RECORD)
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "training_pairs.json",
    }
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert set(weights.keys()) == {f"model.inner.{key}" for key in tensor_shapes(TINY)}
    assert json.loads((folder / "config.json").read_text()) == {
        "format_version": 1,
        "model": TINY.model_dump(mode="json"),
        "conversion": {"word_hash": "sha256", "puzzle_policy": "line_index", "puzzle_space": 5},
    }
    pairs = json.loads((folder / "training_pairs.json").read_text())
    assert pairs["pair_hashes"] == sorted(RECORD.pair_hashes)
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1


def test_a_built_network_is_ready_to_evaluate(tmp_path: Path) -> None:
    state = {key: tensor.bfloat16() for key, tensor in state_of(TINY).items()}
    save_checkpoint(tmp_path / "half", state, TINY, SHA256, None)
    network = load_checkpoint(tmp_path / "half").build(forward_dtype=torch.bfloat16)
    assert not network.training
    assert network.forward_dtype == torch.bfloat16
    built = network.state_dict()
    assert {tensor.dtype for tensor in built.values()} == {torch.float32}
    assert all(torch.equal(built[key], state[key].float()) for key in state)


def test_a_built_network_does_not_share_the_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "one", state_of(TINY), TINY, SHA256, None)
    checkpoint = load_checkpoint(tmp_path / "one")
    with torch.no_grad():
        checkpoint.build().H_init.zero_()
    assert load_checkpoint(tmp_path / "one").digest == checkpoint.digest
    assert checkpoint.state["H_init"].abs().sum() > 0


def test_saving_over_a_checkpoint_replaces_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    save_checkpoint(folder, state_of(TINY), TINY, SHA256, RECORD)
    (folder / "README.md").write_text("card")
    first = load_checkpoint(folder)
    changed = {key: -tensor for key, tensor in first.state.items()}
    save_checkpoint(folder, changed, TINY, ConversionConfig(), None)
    second = load_checkpoint(folder)
    assert torch.equal(second.state["H_init"], -first.state["H_init"])
    assert second.conversion == ConversionConfig()
    assert second.training is None
    assert (folder / "README.md").read_text() == "card"


@pytest.mark.parametrize(
    ("crash_at", "left"),
    [(1, "old"), (2, "none"), (3, "none"), (4, "none"), (5, "none"), (6, "new")],
)
def test_a_crash_while_saving_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, left: str
) -> None:
    folder = tmp_path / "run"
    save_checkpoint(folder, state_of(TINY), TINY, SHA256, RECORD)
    new = TINY.model_copy(update={"H_cycles": 1})
    calls = iter(range(1, crash_at + 1))

    def fsync(_: int) -> None:
        if next(calls) == crash_at:
            raise KeyboardInterrupt

    state = state_of(TINY)
    changed = FIRST_RECORD.model_copy(update={"pair_hashes": frozenset()})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, state, new, ConversionConfig(), changed)
    if left == "none":
        assert "no weights in this folder" in refusal(folder)
    else:
        loaded = load_checkpoint(folder)
        old = (TINY, SHA256, RECORD)
        assert (loaded.config, loaded.conversion, loaded.training) == (
            old if left == "old" else (new, ConversionConfig(), changed)
        )
    save_checkpoint(folder, state_of(TINY), new, ConversionConfig(), RECORD)
    assert load_checkpoint(folder).config == new


def test_saving_refuses_tensors_that_would_not_load(tmp_path: Path) -> None:
    state = state_of(TINY)
    del state["q_head.bias"]
    with pytest.raises(CheckpointError, match=r"lacks q_head\.bias, which config\.json calls for"):
        save_checkpoint(tmp_path / "new", state, TINY, SHA256, RECORD)
    assert not (tmp_path / "new").exists()


def test_saving_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    state = {**state_of(TINY), "L_init": torch.full((16,), torch.inf)}
    with pytest.raises(CheckpointError, match=r"L_init has NaN or infinite numbers"):
        save_checkpoint(tmp_path / "new", state, TINY, SHA256, RECORD)
    assert not (tmp_path / "new").exists()


def test_reading_differs_from_loading_only_for_numbers_that_are_not_finite(
    tmp_path: Path,
) -> None:
    state = state_of(TINY)
    folder = store(tmp_path / "m", state)
    write_config(folder, model=TINY.model_dump(mode="json"))
    assert read_checkpoint(folder).digest == load_checkpoint(folder).digest
    state["H_init"][2] = torch.nan
    store(folder, state)
    assert "H_init has NaN or infinite numbers" in refusal(folder)
    assert read_checkpoint(folder).state["H_init"].isnan().sum() == 1
    del state["L_init"]
    store(folder, state)
    with pytest.raises(CheckpointError, match="lacks L_init"):
        read_checkpoint(folder)


def test_saving_refuses_a_folder_with_other_weights(tmp_path: Path) -> None:
    torch.save(state_of(TINY), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds model\.pt: choose another folder"):
        save_checkpoint(tmp_path, state_of(TINY), TINY, SHA256, RECORD)


def test_saving_says_that_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: cannot be written .*: choose another"):
        save_checkpoint(tmp_path / "file" / "run", state_of(TINY), TINY, SHA256, RECORD)


# The digest.


def digest(folder: Path, state: Mapping[str, Tensor], **changes: Any) -> str:  # noqa: ANN401
    config, conversion = changes.pop("config", TINY), changes.pop("conversion", SHA256)
    save_checkpoint(folder, state, config, conversion, None)
    return load_checkpoint(folder).digest


def test_the_digest_changes_with_every_part_of_the_model(tmp_path: Path) -> None:
    state = state_of(TINY)
    one_bit = {**state, "L_init": state["L_init"].clone()}
    one_bit["L_init"].view(torch.int32)[3] ^= 1
    swapped = {**state, "H_init": state["L_init"], "L_init": state["H_init"]}
    digests = [
        digest(tmp_path / "0", state),
        digest(tmp_path / "1", one_bit),
        digest(tmp_path / "2", swapped),
        digest(tmp_path / "3", {**state, "H_init": state["H_init"].bfloat16()}),
        digest(tmp_path / "4", state, config=TINY.model_copy(update={"H_cycles": 1})),
        digest(tmp_path / "5", state, conversion=ConversionConfig()),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(value) == 64 for value in digests)
    assert digest(tmp_path / "again", state) == digests[0]


def test_the_digest_does_not_depend_on_file_format_or_training_record(tmp_path: Path) -> None:
    state = state_of(TINY)
    save_checkpoint(tmp_path / "saved", state, TINY, ConversionConfig(), RECORD)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(
        {"_orig_mod.model.inner." + key: state[key] for key in reversed(state)}, run / "a.pt"
    )
    write_config(run, model=TINY.model_dump(mode="json"))
    assert load_checkpoint(run / "a.pt").digest == load_checkpoint(tmp_path / "saved").digest


# The training record.


KNOWN = pair_hash(3, [0, 4, 11])


@pytest.mark.parametrize("name", RECORDS)
def test_the_digest_of_records_changes_with_each_of_them(tmp_path: Path, name: str) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "tiny", record=None))
    none = checkpoint.records_digest()
    record = tmp_path / "tiny" / name
    record.write_bytes(b"one")
    one = checkpoint.records_digest()
    record.write_bytes(b"two")
    assert len({none, one, checkpoint.records_digest()}) == 3
    record.unlink()
    assert checkpoint.records_digest() == none
    record.mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: Is a directory"):
        checkpoint.records_digest()


def test_a_target_is_accepted_unless_a_known_pair_has_none_of_its_length() -> None:
    targets = [[0] * length for length in range(2, 7)]
    accepted = [target for target in targets if RECORD.accepts_target(KNOWN, target)]
    assert [len(target) for target in accepted] == [3, 4]
    for target in targets:
        assert RECORD.accepts_target(pair_hash(4, [0, 4, 11]), target)
        assert FIRST_RECORD.accepts_target(KNOWN, target)


def test_a_pair_with_several_answers_accepts_their_tokens_and_no_others() -> None:
    assert SEVERAL.accepts_target(KNOWN, [0, 2, 11])
    assert SEVERAL.accepts_target(KNOWN, [0, 2, 1, 11])
    # As long as one, with the first tokens of the other.
    assert not SEVERAL.accepts_target(KNOWN, [0, 2, 1])
    assert SEVERAL.accepts_target(pair_hash(4, [0, 11]), [0, 0, 0, 0])
    assert list(SEVERAL.rows(KNOWN)) == [3, 2]
    assert not SEVERAL.rows(pair_hash(4, [0, 11]))
    assert not FIRST_RECORD.rows(KNOWN)


def test_answers_are_stored_and_leave_no_trace_where_there_are_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(TINY), TINY, SHA256, SEVERAL)
    assert load_checkpoint(tmp_path).training == SEVERAL
    assert '"answers"' in SEVERAL.to_json()
    assert '"answers"' not in RECORD.to_json()


def test_the_rows_of_answers_have_to_be_in_the_table(tmp_path: Path) -> None:
    rows = {KNOWN: {**ANSWERS[KNOWN], "0" * 32: 5}}
    record = SEVERAL.model_copy(update={"accepted": ACCEPTED.model_copy(update={"answers": rows})})
    save_checkpoint(tmp_path, state_of(TINY), TINY, SHA256, record)
    assert refusal(tmp_path) == (
        f"{tmp_path / 'training_pairs.json'}: accepted.answers: puzzle row 5, but the table has 5 "
        "rows: restore the file of these weights, or remove it to go without"
    )


def test_common_answers_are_those_in_the_same_row() -> None:
    (answers,) = ANSWERS.values()
    first, second = answers
    other = {KNOWN: {first: 3, second: 4, "0" * 32: 1}}
    common = ACCEPTED.model_copy(update={"answers": ANSWERS}).common(
        ACCEPTED.model_copy(update={"answers": other})
    )
    assert common.answers == {KNOWN: {first: 3}}
    assert ACCEPTED.common(common).answers == {}


VARIED = Variations(changes=3, prompts={9: ((0, 7, 8, 9, 11),), 2: ((0, 9, 11), (0, 4, 11))})


def test_varied_prompts_are_stored_and_leave_no_trace_where_there_are_none(tmp_path: Path) -> None:
    accepted = ACCEPTED.model_copy(update={"variations": VARIED})
    record = RECORD.model_copy(update={"accepted": accepted})
    loaded = load_checkpoint(saved(tmp_path, record)).training
    assert loaded is not None
    assert loaded.to_json() == record.to_json()
    assert loaded.varied_prompts == 3
    assert loaded.varied_pair(9, (0, 7, 9, 11)) == pair_hash(9, (0, 7, 8, 9, 11))
    assert loaded.varied_pair(2, (0, 7, 9, 11)) is None
    assert "variations" not in RECORD.to_json()
    assert (RECORD.varied_prompts, RECORD.varied_pair(9, (0, 7, 9, 11))) == (0, None)


def test_common_variations_are_the_prompts_and_changes_of_both() -> None:
    ours = ACCEPTED.model_copy(update={"variations": VARIED})
    other = Variations(changes=2, prompts={2: ((0, 4, 11),), 9: ((0, 5, 11),)})
    theirs = ACCEPTED.model_copy(update={"variations": other})
    assert ours.common(theirs).variations == Variations(changes=2, prompts={2: ((0, 4, 11),)})
    assert ours.common(ACCEPTED).variations is None


def test_a_record_of_version_1_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_checkpoint(folder, state_of(TINY), TINY, SHA256, FIRST_RECORD)
    assert json.loads((folder / "training_pairs.json").read_text()) == {
        "format_version": 1,
        "pair_hashes": sorted(RECORD.pair_hashes),
        "target_token_counts": list(range(12)),
    }
    assert load_checkpoint(folder).training == FIRST_RECORD


def test_a_pairs_hash_is_the_hash_of_its_text() -> None:
    # printf '7:0,3,11' | sha256sum | cut -c -32
    assert pair_hash(7, [0, 3, 11]) == "5d63eb7ee97ef52051c949ac71ea3c04"


@given(st.lists(st.tuples(st.integers(0, 99), st.lists(st.integers(0, 11))), unique_by=repr))
def test_different_pairs_have_different_hashes(pairs: list[tuple[int, list[int]]]) -> None:
    assert len({pair_hash(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"pair_hashes": ["xyz"], "target_token_counts": [0] * 12}, r"pair_hashes\.0: "),
        ({"pair_hashes": [], "target_token_counts": [0] * 11}, r"target_token_counts: "),
        ({"pair_hashes": [], "target_token_counts": [-1] * 12}, r"target_token_counts\.0: "),
        ({"pair_hashes": []}, r"target_token_counts: Field required"),
        ({"pair_hashes": [], "target_token_counts": [0] * 12, "x": 1}, r"unknown field 'x'"),
        ({"pair_hashes": [], "target_token_counts": [0] * 12}, r"accepted: version 2 has it"),
        ({**json.loads(RECORD.to_json()), "format_version": 1}, r"accepted: version 2 has it"),
        ({**json.loads(RECORD.to_json()), "format_version": 3}, r"format_version: "),
        (
            {**json.loads(RECORD.to_json()), "pair_hashes": []},
            r"accepted\.target_lengths: not of the same pairs",
        ),
        (
            {
                **json.loads(RECORD.to_json()),
                "accepted": {**json.loads(ACCEPTED.model_dump_json()), "answers": {"0" * 32: {}}},
            },
            r"accepted: answers: of a pair that target_lengths has not",
        ),
    ],
)
def test_an_invalid_training_record_is_refused_by_field(
    tmp_path: Path, content: dict[str, Any], place: str
) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    (folder / "training_pairs.json").write_text(json.dumps(content))
    said = refusal(folder)
    assert re.search(rf"training_pairs\.json: {place}.*: restore it, or remove it", said)
