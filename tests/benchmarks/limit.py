"""A device's upper limit: the arithmetic of an example, and the rate of matrix products alone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.kernels.compiler import Kernels, kernels
from hrm.kernels.cpu import PRODUCT_DTYPES, Packing, has_level
from hrm.kernels.int8 import quantised
from hrm.model.config import HRMConfig

BATCHES = (1, 8, 32)
"""Batch sizes with which products are measured; rows are the positions of all examples."""

GPU_SIZE = 8192
"""Rows and columns of the product with which a GPU is measured."""


def linear_shapes(config: HRMConfig) -> list[tuple[int, int]]:
    """Numbers of inputs and outputs of a block's linear maps."""
    size, inner = config.hidden_size, config.intermediate_size
    return [(size, 3 * size), (size, size), (size, 2 * inner), (inner, size)]


def arithmetic(config: HRMConfig, steps: int) -> int:
    """Floating-point operations in the matrix products of one example over `steps` ACT steps."""
    length = config.puzzle_emb_len + config.seq_len
    linear = sum(2 * length * inputs * outputs for inputs, outputs in linear_shapes(config))
    attention = 2 * (2 * length * length * config.hidden_size)
    blocks = config.H_cycles * (config.H_layers + config.L_cycles * config.L_layers)
    head = 2 * config.seq_len * config.hidden_size * config.vocab_size
    return steps * blocks * (linear + attention) + head


@dataclass(frozen=True)
class Product:
    """A matrix product to be timed."""

    operations: int
    work: Callable[[], Tensor]
    device: str

    @torch.inference_mode()
    def rate(self, seconds: float) -> float:
        """Operations per second, measured over at least `seconds`."""
        count, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not count:
            self.work()
            if self.device != "cpu":
                torch.cuda.synchronize(self.device)
            count += 1
        return count * self.operations / passed


def fastest_product(config: HRMConfig, dtype: torch.dtype, device: str, seconds: float) -> Product:
    """The network's matrix product with the highest rate, in torch's forms and the C++'s.

    On a GPU it is a large square product, which reaches a higher rate than the network's shapes.
    """
    products = list(_on_cpu(config, dtype) if device == "cpu" else _on_gpu(dtype, device))
    for product in products:
        product.rate(0)  # warms up
    return max(products, key=lambda product: product.rate(seconds / len(products)))


def _on_cpu(config: HRMConfig, dtype: torch.dtype) -> Iterator[Product]:
    for batch in BATCHES:
        rows = batch * (config.puzzle_emb_len + config.seq_len)
        for inputs, outputs in linear_shapes(config):
            x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
            for form in (*_in_torch(x, weight, dtype), *_in_cpp(x, weight, dtype)):
                yield Product(2 * rows * inputs * outputs, form, "cpu")


def _in_torch(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[Callable[[], Tensor]]:
    if dtype == torch.int8:
        yield partial(torch._int_mm, quantised(x)[0], quantised(weight)[0].T)
        return
    x, weight = x.to(dtype), weight.to(dtype)
    yield partial(F.linear, x, weight)
    if _is_packed(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        yield partial(_packed_linear, x, packed)


def _in_cpp(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[Callable[[], Tensor]]:
    found = kernels()
    if isinstance(found, Kernels) and has_level(found, dtype):
        rows = quantised(x)[0].short().add(128).byte() if dtype == torch.int8 else x.to(dtype)
        packing = Packing(dtype, found)
        function = getattr(found.library, f"product_{PRODUCT_DTYPES[dtype]}")
        yield partial(_product, function, packing.grouped(rows), packing(weight))


def _is_packed(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], None)
    return product


def _product(function: Callable[..., None], x: Tensor, packed: Tensor) -> Tensor:
    rows, inputs = x.shape
    output = torch.empty(rows, packed.shape[0] * packed.shape[2])
    function(
        x.data_ptr(),
        packed.data_ptr(),
        output.data_ptr(),
        rows,
        inputs,
        output.shape[1],
        torch.get_num_threads(),
    )
    return output


def _on_gpu(dtype: torch.dtype, device: str) -> Iterator[Product]:
    x = torch.randn(GPU_SIZE, GPU_SIZE, device=device)
    if dtype == torch.int8:
        values, _ = quantised(x)
        product = partial(torch._int_mm, values, values.T)
    else:
        product = partial(torch.mm, x.to(dtype), x.to(dtype))
    yield Product(2 * GPU_SIZE**3, product, device)
