"""The C++ kernels: built once for the processor they run on, then loaded from a cache.

Needs a C++ compiler: the one named by the environment variable `CXX`, else `g++`, else `clang++`.
Builds are kept in the folder of `hrm.kernels.folder`, under a name that changes with the source,
the compiler and the processor. `SQE_CPU_KERNELS=off` in the environment turns off the kernels, and
packed weights with them.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from hrm.kernels.folder import cache_folder

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "cpu_gradients.cpp"))
"""Files that are compiled; each includes `HEADER`."""

HEADER = Path(__file__).with_name("cpu_vectors.h")

SWITCH = "SQE_CPU_KERNELS"
"""Environment variable; with the value `off` the kernels are not used."""

FLAGS = (
    "-O3",
    "-march=native" if platform.machine() in {"x86_64", "AMD64", "i686"} else "-mcpu=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",  # the other options of -ffast-math would lose NaNs
    "-shared",
    "-fPIC",
    "-std=c++17",
)

TIMEOUT = 120
"""Seconds that a build may take; it usually takes seven."""

ARGUMENTS = {
    "attention": [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int, c_int, c_int],
    "add_norm": [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_float, c_int],
    "swiglu": [c_void_p, c_void_p, c_int64, c_int, c_int],
    "attention_gradient": [*[c_void_p] * 4, c_int64, c_int, c_int, c_int, c_int],
    "add_norm_gradient": [*[c_void_p] * 4, c_int64, c_int, c_float, c_int],
    "swiglu_gradient": [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int],
    "level": [*[c_void_p] * 5, c_int64, *[c_int] * 6, c_float, c_int],
    "step": [*[c_void_p] * 6, c_int64, *[c_int] * 8, c_float, c_int],
    "product": [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int, c_int],
}
"""Argument types of the functions in `SOURCES`, each of which exists as `…_float32` and
`…_bfloat16`.

`level`, `step` and `product` exist only for dtypes in which their matrix product is the fastest on
this processor, and as `…_int8` if it has instructions for it.
"""


class KernelsUnavailableError(Exception):
    """The C++ kernels are not available here; the text says why, in one line."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that was found."""

    command: tuple[str, ...]
    version: str
    """First line of the output of `--version`."""

    @property
    def label(self) -> str:
        """Program name and version number, for example `g++ 12.2.0`."""
        number = re.search(r"\d+(\.\d+)+", self.version)
        return " ".join([Path(self.command[0]).name, *([number[0]] if number else [])])


@dataclass(frozen=True)
class Kernels:
    """The functions of `SOURCES`, ready to be called."""

    library: ctypes.CDLL
    compiler: Compiler


def is_switched_off() -> bool:
    """Whether the environment turns the kernels off, so that torch's own functions are used."""
    return os.environ.get(SWITCH) == "off"


@cache
def kernels() -> Kernels | KernelsUnavailableError:
    """The kernels of this process, built on the first call if necessary, or why there are none."""
    try:
        return load()
    except KernelsUnavailableError as error:
        return error


def load() -> Kernels:
    """Load the kernels from the cache, or build them. Raises `KernelsUnavailableError`."""
    compiler = _find_compiler()
    runtime = _openmp()
    name = f"{_digest(compiler, runtime)}.so"
    cached = cache_folder()
    if cached is not None:
        with suppress(OSError):  # not built yet, or damaged
            return Kernels(_open(cached / name), compiler)
        with suppress(OSError):  # the disk is full, or mounted noexec
            _build(compiler, runtime, cached / name)
            return Kernels(_open(cached / name), compiler)
    # A loaded library stays loaded when its file is removed.
    try:
        with tempfile.TemporaryDirectory(prefix="sqe-hrm-") as folder:
            _build(compiler, runtime, Path(folder) / name)
            return Kernels(_open(Path(folder) / name), compiler)
    except OSError as error:
        raise KernelsUnavailableError(_line(f"the kernels cannot be loaded: {error}")) from None


def _find_compiler() -> Compiler:
    named = os.environ.get("CXX")
    try:
        candidates = [tuple(shlex.split(named))] if named else [("g++",), ("clang++",)]
    except ValueError:
        raise KernelsUnavailableError("CXX is not a command") from None
    found = [command for command in candidates if command and shutil.which(command[0])]
    if not found:
        raise KernelsUnavailableError(
            "CXX names a program that does not exist"
            if named
            else "no C++ compiler was found: install g++"
        )
    about = _run([*found[0], "--version"]).splitlines()
    return Compiler(found[0], about[0] if about else "")


def _openmp() -> str:
    """Linker argument for OpenMP: the library that torch has loaded, if torch ships its own.

    Two OpenMP libraries would each keep a set of threads, which compete for the cores.
    """
    folder = Path(torch.__file__).parent
    own = [*(folder / "lib").glob("libgomp*.so*"), *(folder.parent / "torch.libs").glob("libgomp*")]
    return str(min(own)) if own else "-fopenmp"


def _digest(compiler: Compiler, runtime: str) -> str:
    """Hash of everything the build depends on: source, flags, compiler, OpenMP runtime,
    processor.
    """
    parts = (*FLAGS, *compiler.command, compiler.version, runtime, _processor())
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in (*SOURCES, HEADER):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """The processor's architecture and, on Linux, its model and instruction sets.

    Several machines may share one cache.
    """
    properties = {platform.machine()}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("flags", "model name", "Features", "CPU implementer", "CPU part")
        properties.update(line for line in lines if line.startswith(wanted))
    return "\n".join(sorted(properties))


def _build(compiler: Compiler, runtime: str, library: Path) -> None:
    """Build `library` under a temporary name and rename it when complete.

    Another process may be building the same library.
    """
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        _run([*compiler.command, *FLAGS, *map(str, SOURCES), runtime, "-o", partial])
        with Path(partial).open("rb") as written:
            os.fsync(written.fileno())
        Path(partial).replace(library)
    finally:
        Path(partial).unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},  # English messages, which are searched for "error"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailableError(_line(f"the C++ compiler failed: {error}")) from None
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        said = next((line for line in lines if "error" in line), lines[0])
        raise KernelsUnavailableError(_line(f"the C++ compiler failed: {said}"))
    return done.stdout


def _open(library: Path) -> ctypes.CDLL:
    """Load `library` and declare its functions' argument types. Raises `OSError`."""
    opened = ctypes.CDLL(str(library))
    for name, arguments in ARGUMENTS.items():
        for dtype in ("float32", "bfloat16", "int8"):
            function = getattr(opened, f"{name}_{dtype}", None)
            if function is not None:
                function.argtypes, function.restype = arguments, None
    return opened


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
