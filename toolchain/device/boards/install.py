"""How to get TensorRT on a board or a PC: exact commands and documents.

Rules of this file: it makes texts from values of the table. It looks nothing up and runs nothing.
Sources: packages of JetPack's apt repository (python3-libnvinfer carries the Python module,
libnvinfer-bin carries trtexec), TensorRT installation guide, PyPI.
"""

from __future__ import annotations

from toolchain.core.errors import install_command
from toolchain.device.boards.target import SBSA_RELEASE, Target

PYTORCH = "docs.nvidia.com/deeplearning/frameworks/install-pytorch-jetson-platform"
_SBSA = "docs.nvidia.com/deeplearning/tensorrt/11.4.1/installing-tensorrt/install-alternative.html"
APT_PACKAGE = "sudo apt install python3-libnvinfer"
RTX_PACKAGE = install_command("tensorrt-rtx")


def module(target: Target) -> str:
    """Return how to get the Python module that ``target`` builds and runs engines with."""
    release = target.release
    if target.board.is_card:
        return _wheel(target)
    if release.scripted:
        return (
            f"JetPack {release.jetpack} carries TensorRT {release.tensorrt} for Python "
            f"{release.python}, on which this toolchain does not run: build by the kit's script"
        )
    if release.name == SBSA_RELEASE:
        return f"TensorRT {release.tensorrt}, the Linux SBSA package ({_SBSA}): {APT_PACKAGE}"
    return (
        f"JetPack {release.name.removeprefix('jp')} carries TensorRT {release.tensorrt} for Python "
        f"{release.python}: {APT_PACKAGE}"
    )


def trtexec(target: Target) -> str:
    """Return how to get ``trtexec``, which the kit's script builds with."""
    if target.board.is_card:
        return "the tar package of TensorRT (developer.nvidia.com/tensorrt) has it in bin/"
    return "sudo apt install libnvinfer-bin, which puts it into /usr/src/tensorrt/bin"


def environment(folder: str) -> str:
    """Return how this Python can see a module that the system's packages put into ``folder``."""
    return (
        f"the module lies in {folder}, which this Python does not see: make the environment with "
        "/usr/bin/python3 -m venv --system-site-packages"
    )


def _wheel(target: Target) -> str:
    release = target.release
    if release.is_rtx:
        return RTX_PACKAGE
    major = release.cuda.partition(".")[0]
    numbers = ".".join(release.tensorrt.split(".")[:2])
    return f"pip install 'tensorrt-cu{major}=={numbers}.*'"
