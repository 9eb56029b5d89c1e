"""The processor's maker, on which the order of torch's sums depends. Imports no torch."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

IS_INTEL = _CPUINFO.is_file() and "GenuineIntel" in _CPUINFO.read_text()
"""Whether it is Intel, for whose processors MKL, torch's library of products, has other sums."""
