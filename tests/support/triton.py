"""Triton without a GPU: kernels are interpreted in a process, or compiled without being run."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

HOPPER_MEMORY = 227 << 10
"""Bytes of shared memory that a program may have at compute capability 9.0."""

TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8"}
"""Triton's names of dtypes."""


@contextmanager
def interpreting() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets kernels, which is decided at its first import."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            # Importing `hrm` imports no Triton, or kernels would be interpreted by chance.
            assert not pool.submit(_has_triton).result()
        pool.submit(_fuse).result()
        yield pool


def _has_triton() -> bool:
    import hrm.kernels  # noqa: F401, PLC0415

    return "triton" in sys.modules


def _fuse() -> None:
    """Let the interpreter round once in a fused multiplication and addition, as devices do."""
    import numpy as np  # noqa: PLC0415
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # noqa: PLC0415

    def fma(_: Any, x: Any, y: Any, z: Any) -> Any:  # noqa: ANN401
        exact = x.data.astype(np.longdouble) * y.data + z.data
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    InterpreterBuilder.create_fma = fma


class Compiler:
    """Compiles kernels for compute capability 9.0 at each launch, instead of running them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]) -> None:
        self.compiled: dict[str, Any] = {}
        self._patch, self._output = monkeypatch, output

    def replace(self, module: ModuleType, *names: str) -> None:
        """Put this compiler in the place of kernels of `module`."""
        for name in names:
            self._patch.setattr(
                module, name, _Launches(partial(self._launch, getattr(module, name)))
            )

    def _launch(
        self,
        kernel: Any,  # noqa: ANN401
        *arguments: Any,  # noqa: ANN401
        num_warps: int,
        num_stages: int = 3,
        **sizes: int,
    ) -> None:
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415
        from triton.compiler import ASTSource, compile  # noqa: A004, PLC0415

        signature, aligned = dict.fromkeys(sizes, "constexpr"), {}
        for number, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            if isinstance(value, Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
                aligned[number,] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"
        source = ASTSource(kernel, signature, sizes, aligned)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        key = f"{source.hash()} {options}"
        if key not in self.compiled:
            self.compiled[key] = compile(source, GPUTarget("cuda", 90, 32), options)

    def assert_all_fit(self, instruction: str) -> None:
        """Every kernel has the `instruction`, and neither spills registers nor waits for each."""
        log = self._output.readouterr().out
        assert log.count("0 bytes spill stores, 0 bytes spill loads") == len(self.compiled)
        assert "serialized" not in log
        assert all(instruction in kernel.asm["ptx"] for kernel in self.compiled.values())
        assert all(kernel.metadata.shared <= HOPPER_MEMORY for kernel in self.compiled.values())


class _Launches:
    """A kernel whose launches are calls of `launch`."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch = launch

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        assert grid[0] > 0
        return self._launch
