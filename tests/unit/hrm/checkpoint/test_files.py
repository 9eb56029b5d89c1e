"""Weights files: the formats that are read, and the files that are refused."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hrm.checkpoint import CheckpointError, load_checkpoint
from tests.support.checkpoints import TINY, refusal, state_of, store

Writer = Callable[[Any, Path], None]


def write_zip(content: object, file: Path) -> None:
    torch.save(content, file)


def write_legacy(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_safetensors(content: Mapping[str, Tensor], file: Path) -> None:
    save_file(dict(content), file)


TORCH_FORMS = pytest.mark.parametrize("write", [write_zip, write_legacy])
FORMS = pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return state_of(TINY)


def assert_loads(path: Path, state: Mapping[str, Tensor]) -> None:
    loaded = load_checkpoint(path).state
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        assert loaded[key].dtype == tensor.dtype
        assert not loaded[key].requires_grad
        assert torch.equal(loaded[key], tensor)


# Every supported format.


@FORMS
@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", "inner.", ""])
@pytest.mark.parametrize("name", ["step_7566", "weights.pt", "weights.safetensors"])
def test_every_format_is_read_whatever_the_file_name_and_prefix(
    tmp_path: Path, state: dict[str, Tensor], write: Writer, prefix: str, name: str
) -> None:
    write({prefix + key: tensor for key, tensor in state.items()}, tmp_path / name)
    assert_loads(tmp_path / name, state)


@TORCH_FORMS
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_nested_state_dict_is_found(
    tmp_path: Path, state: dict[str, Tensor], write: Writer, wrapper: str
) -> None:
    write({"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}}, tmp_path / "run.pt")
    assert_loads(tmp_path / "run.pt", state)


@TORCH_FORMS
@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", "inner."])
def test_a_nested_state_dict_may_have_a_prefix(
    tmp_path: Path, state: dict[str, Tensor], write: Writer, prefix: str
) -> None:
    nested = {prefix + key: tensor for key, tensor in state.items()}
    write({"step": 7566, "model": nested}, tmp_path / "run.pt")
    assert_loads(tmp_path / "run.pt", state)


@FORMS
def test_dtypes_may_be_mixed_and_are_kept(
    tmp_path: Path, state: dict[str, Tensor], write: Writer
) -> None:
    mixed = dict(state)
    for key in ("puzzle_emb.weights", "H_init", "L_init"):
        mixed[key] = state[key].bfloat16()
    mixed["lm_head.weight"] = state["lm_head.weight"].half()
    write(mixed, tmp_path / "mixed")
    assert_loads(tmp_path / "mixed", mixed)


def test_parameters_and_views_are_read_as_tensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    stored: dict[str, Tensor] = {key: torch.nn.Parameter(tensor) for key, tensor in state.items()}
    stored["lm_head.weight"] = torch.nn.Parameter(state["lm_head.weight"].T.contiguous()).T
    write_zip(stored, tmp_path / "parameters.pt")
    assert_loads(tmp_path / "parameters.pt", state)


@pytest.mark.parametrize("names", [["model.safetensors", "model.pt"], ["model.pt", "step_1"]])
def test_the_model_file_in_a_folder_is_taken(
    tmp_path: Path, state: dict[str, Tensor], names: list[str]
) -> None:
    for name in names:
        store(tmp_path, state, name)
    assert load_checkpoint(tmp_path).path == tmp_path / names[0]


@pytest.mark.parametrize("name", ["step_7566", "weights.safetensors", "best.pth"])
def test_the_only_weights_file_in_a_folder_is_taken(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    store(tmp_path, state, name)
    for other in ("LICENSE", "README.md", "hrm_act_v1.py", "step_7566_all_preds.0", ".cache.pt"):
        (tmp_path / other).write_text("something else")
    assert load_checkpoint(tmp_path).path == tmp_path / name


# Refusals.


class Malice:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (exec, (f"open({str(self.trace)!r}, 'w').close()",))


@TORCH_FORMS
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, state: dict[str, Tensor], write: Writer
) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pt"
    write({**state, "H_init": Malice(trace)}, file)
    said = refusal(file)
    assert said.startswith(f"{file}: refused, because reading it would run ")
    assert "exec: save model.state_dict() alone, or as safetensors" in said
    assert not trace.exists()
    # Read without the refusal, the same file does run code.
    script = f"import torch; torch.load({str(file)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps(Malice(trace), protocol))
    assert ("not a checkpoint" if protocol < 2 else "bare pickle, which could run") in refusal(file)
    assert not trace.exists()


@TORCH_FORMS
def test_a_whole_module_is_refused(tmp_path: Path, write: Writer) -> None:
    write(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "would run torch.nn.modules.linear.Linear: save" in refusal(tmp_path / "module.pt")


@FORMS
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(
    tmp_path: Path, state: dict[str, Tensor], write: Writer, part: float
) -> None:
    file = tmp_path / "cut"
    write(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    said = refusal(file)
    assert said.startswith(f"{file}: truncated or damaged (")
    assert said.endswith("): copy it again")


@FORMS
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_changed_bytes_is_read_or_refused(
    tmp_path: Path, state: dict[str, Tensor], write: Writer
) -> None:
    file = tmp_path / "changed"
    write(state, file)
    content = file.read_bytes()
    for position in range(40, 1200, 7):
        changed = bytearray(content)
        changed[position] ^= 0x55
        file.write_bytes(changed)
        with suppress(CheckpointError):
            load_checkpoint(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b'{"prompt": "a", "completion": "b"}',
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    said = refusal(tmp_path)
    assert any(
        said.startswith(f"{file}: {reason}")
        for reason in ("not a checkpoint: give", "truncated or damaged", "holds no state dict")
    )


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 111962704\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "a Git LFS pointer, not the weights: run git lfs pull" in refusal(tmp_path)


@TORCH_FORMS
@pytest.mark.parametrize("content", [5, [1, 2], {}, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(
    tmp_path: Path, write: Writer, content: object
) -> None:
    write(content, tmp_path / "other.pt")
    assert "holds no state dict: save model.state_dict()" in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epoch", 3, "'epoch' is int, not a tensor: save"),
        (7, torch.ones(2), "7 is not a tensor's name"),
        ("a\nb", torch.ones(2), r"'a\nb' is not a tensor's name"),
        ("mask", torch.ones(2).bool(), "'mask' has no plain floating point numbers (torch.bool)"),
        ("x", torch.eye(2).to_sparse(), "'x' has no plain floating point numbers (torch.float32)"),
        ("x", torch.ones(2, device="meta"), "'x' has no plain floating point numbers"),
        (
            "bomb",
            torch.ones(1).expand(10**7, 10**7),
            "'bomb' of shape (10000000, 10000000) is not stored in full",
        ),
    ],
)
def test_a_value_that_is_not_a_tensor_of_numbers_is_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor], key: object, value: object, said: str
) -> None:
    content: dict[Any, Any] = {**state, key: value}
    write_zip(content, tmp_path / "odd.pt")
    assert said in refusal(tmp_path / "odd.pt")


@FORMS
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_is_refused_in_every_format(
    tmp_path: Path, state: dict[str, Tensor], write: Writer, number: float, dtype: torch.dtype
) -> None:
    key = "H_level.layers.0.self_attn.qkv_proj.weight"
    broken = state[key].to(dtype)
    broken[5, 3] = number
    write({f"model.inner.{k}": v for k, v in {**state, key: broken}.items()}, tmp_path / "step_1")
    assert refusal(tmp_path / "step_1") == (
        f"{tmp_path / 'step_1'}: {key} has NaN or infinite numbers: take an earlier checkpoint"
    )


def test_keys_with_and_without_prefix_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    write_zip({**state, "model.inner.H_init": state["H_init"]}, tmp_path / "two.pt")
    assert "keys with and without 'model.inner.': keep one form" in refusal(tmp_path / "two.pt")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("no weights in this folder: put model.safetensors there")


def test_a_folder_with_several_weights_files_is_refused(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    for step in (1, 2):
        store(tmp_path, state, f"step_{step}")
    assert "several weights files (step_1, step_2): name one of them" in refusal(tmp_path)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder: name an existing checkpoint" in refusal(tmp_path / "none")
