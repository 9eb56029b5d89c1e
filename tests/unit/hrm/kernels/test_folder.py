"""hrm.kernels.folder: compiled kernels are kept where only their user can change them.

The rules for the folder itself are tested with the C++ kernels, in `test_cpu.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrm.kernels.folder import GPU_CACHES, keep_gpu_caches

CACHES = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sqe-hrm"


def test_gpu_caches_are_in_the_users_cache(home: Path) -> None:
    environ: dict[str, str] = {}
    keep_gpu_caches(environ)
    assert environ.keys() == CACHES == GPU_CACHES.keys()
    assert {Path(folder).parent for folder in environ.values()} == {home}
    assert len(set(environ.values())) == 2
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_the_environment_names_stays(home: Path) -> None:
    environ = {"TRITON_CACHE_DIR": "/elsewhere", "TORCHINDUCTOR_CACHE_DIR": ""}
    keep_gpu_caches(environ)
    assert environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "inductor")


def test_without_a_folder_of_the_users_own_the_caches_end_with_the_process(home: Path) -> None:
    home.mkdir(mode=0o700)
    home.chmod(0o777)
    (home / "inductor").mkdir()
    code = (
        "import os; from pathlib import Path; from hrm.kernels.folder import keep_gpu_caches;"
        "keep_gpu_caches(); folder = Path(os.environ['TRITON_CACHE_DIR']);"
        "folder.mkdir(); print(folder, oct(folder.parent.stat().st_mode & 0o777))"
    )
    environ = {name: value for name, value in os.environ.items() if name not in CACHES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    folder, mode = done.stdout.split()
    assert mode == "0o700"
    assert home not in Path(folder).parents
    assert not Path(folder).parent.exists()


def test_torch_and_triton_look_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_dir_utils = pytest.importorskip("torch._inductor.runtime.cache_dir_utils")
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    keep_gpu_caches()
    try:
        assert cache_dir_utils.cache_dir() == str(home / "inductor")
        assert cache_dir_utils.triton_cache_dir(0) == str(home / "triton")
        knobs = pytest.importorskip("triton").knobs
        assert knobs.cache.dir == str(home / "triton")
    finally:
        for name in CACHES:
            del os.environ[name]
