"""What the figures were taken on: processor, load and versions, without names or paths.

Rules of this file: it reads and never decides. What a system does not say is ``unknown``.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("da3-toolchain", "torch", "onnx", "onnxruntime", "onnx-ir", "numpy")


def machine() -> dict[str, Any]:
    """Return processor, cores that this process may use, vector units, load average of 1 minute."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name") or platform.processor() or "unknown",
        "cores": _cores(),
        "vector": next((f for f in ("avx512f", "avx2") if f in flags), platform.machine()),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers


def _cores() -> int:
    # Not every system says which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
