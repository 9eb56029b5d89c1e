"""The folder in which compiled kernels are kept, for they are executed when they are loaded.

It is the user's cache (`$XDG_CACHE_HOME/sqe-hrm`, by default `~/.cache/sqe-hrm`), if only this user
can change it. Knows files and their permissions; nothing of kernels.
"""

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

GPU_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Environment variables with the caches of torch and Triton, and their folders in ours."""


def cache_folder() -> Path | None:
    """The folder for builds, or None if there is none that only this user can change."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "sqe-hrm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if own and not found.st_mode & 0o022 else None


def keep_gpu_caches(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make torch and Triton keep what they compile in `cache_folder`.

    torch's own default is a folder in /tmp whose name anyone can guess, and make first. Without a
    folder that only this user can change, the caches end with the process. A folder that the
    environment names stays.
    """
    missing = [name for name in GPU_CACHES if not environ.get(name)]
    if not missing:
        return
    folder = cache_folder()
    if folder is None or not os.access(folder, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="sqe-hrm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:
        environ[name] = str(folder / GPU_CACHES[name])
