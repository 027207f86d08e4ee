"""File trees of boards as their systems write them, and machines made of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain.device.boards.cuda import Gpu
from toolchain.device.boards.machine import Machine, Package

ORIN_MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
ORIN_GPU = Gpu("Orin", "8.7", 8, 8 * 1024**3, integrated=True, driver="12.6")
RTX_GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 128, 24 * 1024**3, integrated=False, driver="13.0")

TEGRA = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
    "TARGET_USERSPACE_LIB_DIR=nvidia\n"
)
NVPMODEL = """
# FORMAT:
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
DPKG = """Package: nvidia-l4t-core
Status: install ok installed
Version: 36.4.3-20250107174145

Package: nvidia-jetpack
Status: install ok installed
Priority: standard
Version: 6.2+b77
Depends: nvidia-jetpack-runtime (= 6.2+b77)

Package: zlib1g
Status: install ok installed
Version: 1:1.2.11
"""
MEMORY = "MemTotal:        7802860 kB\nMemFree:  100 kB\nMemAvailable:    5120000 kB\n"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write ``files`` by their paths below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def orin(root: Path) -> Path:
    """An Orin Nano with JetPack 6.2, as far as files go."""
    return write(
        root,
        {
            "proc/device-tree/model": ORIN_MODEL.encode() + b"\0",
            "proc/meminfo": MEMORY,
            "etc/nv_tegra_release": TEGRA,
            "etc/nvpmodel.conf": NVPMODEL,
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "var/lib/dpkg/status": DPKG,
            "usr/lib/aarch64-linux-gnu/libnvinfer.so": b"",
            "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": b"",
            "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": b"",
            "usr/lib/aarch64-linux-gnu/libnvinfer_plugin.so.10.9.9": b"",
            "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
            "usr/local/cuda/version.json": '{"cuda": {"name": "SDK", "version": "12.6.11"}}',
        },
    )


def machine(**changes: Any) -> Machine:
    """A machine with everything unknown but ``changes``; packages as ``torch="2.9"``."""
    modules = ("tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "torch")
    packages = tuple(Package(name, changes.pop(name)) for name in modules if name in changes)
    values: dict[str, Any] = {
        "system": "Linux",
        "architecture": "aarch64",
        "python": "3.10.12",
        "board": None,
        **dict.fromkeys(("l4t", "jetpack", "power_mode", "driver_fault", "tensorrt_library")),
        **dict.fromkeys(("trtexec", "cuda_toolkit", "memory_bytes", "free_memory_bytes")),
        "free_disk_bytes": None,
        "gpus": (),
        "tensorrt_elsewhere": (),
        "providers": (),
        "packages": packages,
        **changes,
    }
    return Machine(**values)
