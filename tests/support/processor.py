"""What differs between processors in the sums of torch's products. Imports no torch."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

IS_INTEL = _CPUINFO.is_file() and "GenuineIntel" in _CPUINFO.read_text()
"""Whether MKL takes its ways for Intel's own processors."""
