"""hrm.inference.config: the engine and the cache that settings ask for."""

from contextlib import closing
from pathlib import Path

import torch

from hrm.checkpoint import load_checkpoint
from hrm.inference.cache import CachedPredictor
from hrm.inference.config import Inference
from hrm.kernels.compiler import Kernels, kernels
from hrm.kernels.cpu import has_level
from hrm.model.config import HRMConfig
from tests.support.predictors import StubPredictor


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
