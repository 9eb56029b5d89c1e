"""hrm.inference.config: the dtype and the cache that settings ask for."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import load_checkpoint
from hrm.inference import config as inference
from hrm.inference.cache import CachedPredictor
from hrm.inference.config import Inference, dtype_of
from hrm.kernels.compiler import Kernels, kernels
from hrm.kernels.cpu import has_level
from hrm.model.config import HRMConfig
from tests.support.predictors import StubPredictor


def test_a_dtype_is_the_one_named_or_the_fastest_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest = {"cpu": torch.float32, "cuda:0": torch.bfloat16}
    monkeypatch.setattr(inference, "fastest_dtype", fastest.__getitem__)
    assert (dtype_of("auto", "cpu"), dtype_of("auto", "cuda:0")) == tuple(fastest.values())
    assert dtype_of("float32", "cuda:0") == torch.float32
    assert dtype_of("bfloat16", "cpu") == torch.bfloat16
    assert dtype_of("int8", "cpu") == torch.int8


def test_an_engine_computes_in_int8_where_the_processor_can() -> None:
    found = kernels()
    has_int8 = isinstance(found, Kernels) and has_level(found, torch.int8)
    demo = load_checkpoint(Path(__file__).parents[4] / "checkpoints" / "sqe-demo")
    with closing(Inference(slots=1, dtype=torch.int8).engine([demo], "cpu")) as engine:
        assert engine.dtype == (torch.int8 if has_int8 else torch.float32)
        assert engine.networks[0].forward_dtype == torch.float32


def test_a_predictor_has_a_cache_only_if_one_is_asked_for() -> None:
    stub = StubPredictor()
    assert Inference(slots=1).cached(stub, HRMConfig()) is stub
    cached = Inference(slots=1, cached_predictions=3).cached(stub, HRMConfig())
    assert isinstance(cached, CachedPredictor)
