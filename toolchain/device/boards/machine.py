"""What the machine at hand is: board, JetPack, GPU, TensorRT, and the packages beside it.

Rules of this file: it reads and judges nothing. What is not there is None or empty, and never an
error. It reads every file below a root, and at most 64 KiB of it (16 MiB of dpkg's package list).
It imports no package that is heavy or may crash; a child process asks such a package for its
version. :mod:`toolchain.device.boards.doctor` says what follows from the answers.

Sources: /etc/nv_tegra_release and nvpmodel as in the Jetson Linux Developer Guide; device tree
specification 0.4, 2.3.2 ``model``; proc(5).
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import DeviceError
from toolchain.device.boards import cuda
from toolchain.device.boards.cuda import Gpu
from toolchain.device.boards.cudriver import LIBRARY
from toolchain.device.boards.target import JETPACK_OF_L4T

# Distributions that carry a module, the ones with the module's own version first.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-bindings"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnx",),
    "onnx_ir": ("onnx-ir",),
    "onnxscript": ("onnxscript",),
    "torch": ("torch",),
}
_LIMIT_BYTES = 64 * 1024
_LIMIT_PACKAGES = 16 * 1024 * 1024
_CHILD_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Package:
    """A Python module that can be imported here; ``version`` is None if it does not tell it."""

    module: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: sizes in bytes, versions as they are written.

    ``board``: the device tree's model. ``tensorrt_library``: the version in the name of the
    installed ``libnvinfer``. ``tensorrt_elsewhere``: folders of the system's Pythons with a
    TensorRT module that this Python does not see. ``driver_fault``: why an installed driver shows
    no device.
    """

    system: str
    architecture: str
    python: str
    board: str | None
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    gpus: tuple[Gpu, ...]
    driver_fault: str | None
    tensorrt_library: str | None
    tensorrt_elsewhere: tuple[str, ...]
    trtexec: str | None
    cuda_toolkit: str | None
    memory_bytes: int | None
    free_memory_bytes: int | None
    free_disk_bytes: int | None
    packages: tuple[Package, ...]
    providers: tuple[str, ...]

    def package(self, module: str) -> Package | None:
        """Return the package that carries ``module``, None if it is not installed."""
        return next((entry for entry in self.packages if entry.module == module), None)


def read_machine(root: Path = Path("/"), driver: str = LIBRARY) -> Machine:
    """Return what this machine is; it reads files below ``root`` and raises nothing.

    ``driver``: name or path of the CUDA driver library.
    """
    l4t = _l4t(root)
    memory = _memory(root)
    packages = tuple(
        package for module in _DISTRIBUTIONS if (package := _package(module)) is not None
    )
    modules = {package.module for package in packages}
    gpus, fault = _gpus(driver)
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        python=platform.python_version(),
        board=_board(root),
        l4t=l4t,
        jetpack=_jetpack(root, l4t),
        power_mode=_power_mode(root),
        gpus=gpus,
        driver_fault=fault,
        tensorrt_library=_library(root),
        tensorrt_elsewhere=() if "tensorrt" in modules else _elsewhere(root),
        trtexec=_program(root, "trtexec", "/usr/src/tensorrt/bin"),
        cuda_toolkit=_toolkit(root),
        memory_bytes=memory.get("MemTotal"),
        free_memory_bytes=memory.get("MemAvailable"),
        free_disk_bytes=_free_disk(root),
        packages=packages,
        providers=_providers() if "onnxruntime" in modules else (),
    )


def _board(root: Path) -> str | None:
    """Return the device tree's model, which ends with a zero byte."""
    model = system_text(root / "proc/device-tree/model").replace("\0", "").strip()
    return model or None


def _l4t(root: Path) -> str | None:
    """Return ``36.4.3`` from ``# R36 (release), REVISION: 4.3, GCID: ...``."""
    match = re.search(
        r"^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)",
        system_text(root / "etc/nv_tegra_release"),
    )
    return f"{match[1]}.{match[2]}" if match else None


def _jetpack(root: Path, l4t: str | None) -> str | None:
    """Return the version of the package nvidia-jetpack, else the one that Jetson Linux came with.

    The package is not installed on every board; Jetson Linux is.
    """
    listed = system_text(root / "var/lib/dpkg/status", _LIMIT_PACKAGES)
    stanza = re.search(r"^Package: nvidia-jetpack\n((?:.+\n)*)", listed, re.MULTILINE)
    fields = stanza[1] if stanza else ""
    version = re.search(r"^Version: (\d+(?:\.\d+)*)", fields, re.MULTILINE)
    # dpkg lists a removed package too, with another status.
    if version and "Status: install ok installed\n" in fields:
        return version[1]
    parts = (l4t or "").split(".")
    # The exact version first. A patch without a row takes the row of its minor version.
    shorter = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((JETPACK_OF_L4T[name] for name in shorter if name in JETPACK_OF_L4T), None)


def _power_mode(root: Path) -> str | None:
    """Return the name of the power mode: from nvpmodel itself, else from the file it writes."""
    if program := _program(root, "nvpmodel", "/usr/sbin"):
        match = re.search(r"NV Power Mode: *(\S+)", _answer([program, "-q"]))
        if match:
            return match[1]
    number = re.search(r"pmode: *(\d+)", system_text(root / "var/lib/nvpmodel/status"))
    if number is None:
        return None
    pattern = rf"^< *POWER_MODEL +ID=0*{int(number[1])} +NAME=(\S+)"
    match = re.search(pattern, system_text(root / "etc/nvpmodel.conf"), re.MULTILINE)
    return match[1] if match else f"mode {int(number[1])}"


def _gpus(driver: str) -> tuple[tuple[Gpu, ...], str | None]:
    """Return the devices, and what is wrong with a driver that cannot be used."""
    try:
        return tuple(cuda.gpus(driver)), None
    except DeviceError as err:
        return (), err.message


def _library(root: Path) -> str | None:
    """Return the version in the name of libnvinfer: ``10.3.0`` of ``libnvinfer.so.10.3.0``."""
    folders = (f"usr/lib/{machine}-linux-gnu" for machine in ("aarch64", "x86_64"))
    return first_match(root, folders, r"libnvinfer\.so\.(\d+\.\d+\.\d+(?:\.\d+)?)")


def _elsewhere(root: Path) -> tuple[str, ...]:
    """Return the system's folders of Python packages that have a TensorRT module."""
    try:
        modules = sorted((root / "usr/lib").glob("python3*/dist-packages/tensorrt/__init__.py"))
    except OSError:
        return ()
    return tuple(f"/{path.parents[1].relative_to(root)}" for path in modules)


def _toolkit(root: Path) -> str | None:
    """Return the CUDA toolkit's version: version.json from 11.1 on, version.txt before."""
    folder = root / "usr/local/cuda"
    match = re.search(
        r'"cuda"\s*:\s*\{[^{}]*"version"\s*:\s*"(\d+[\d.]*)"', system_text(folder / "version.json")
    ) or re.search(r"CUDA Version (\d+[\d.]*)", system_text(folder / "version.txt"))
    return match[1] if match else None


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much a process can take before the system has to swap; None if it does not say.

    ``root``: where ``proc`` lies. Source: proc(5), ``MemAvailable``.
    """
    return _memory(root).get("MemAvailable")


def _memory(root: Path) -> dict[str, int]:
    """Return the sizes of /proc/meminfo in bytes; it counts in kB of 1024."""
    lines = re.findall(r"^(\w+): +(\d{1,15}) kB$", system_text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(count) * 1024 for name, count in lines}


def _free_disk(root: Path) -> int | None:
    """Return the free space where engines will be written: in the working directory."""
    try:
        return shutil.disk_usage(Path.cwd() if root == Path("/") else root).free
    except OSError:
        return None


def _program(root: Path, name: str, *beside: str) -> str | None:
    """Return the program ``name`` of the search path, or of the folders ``beside`` it."""
    places = [*os.environ.get("PATH", os.defpath).split(os.pathsep), *beside]
    below = [str(root / place.lstrip("/")) for place in places if place.startswith("/")]
    return shutil.which(name, path=os.pathsep.join(below))


def _package(module: str) -> Package | None:
    """Return the module if this Python finds it, with the version of its metadata or its own."""
    # importlib.util.find_spec would look at modules that are loaded already; the finder does not.
    spec = importlib.machinery.PathFinder.find_spec(module)
    # Without an origin it is only a folder of that name.
    if spec is None or spec.origin is None:
        return None
    for name in _DISTRIBUTIONS[module]:
        try:
            return Package(module, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    version = _printed(f"import {module}; print({module}.__version__)")
    return Package(module, version if re.fullmatch(r"[\w.+-]{1,64}", version) else None)


def _providers() -> tuple[str, ...]:
    """Return the execution providers of the installed onnxruntime."""
    program = "import json, onnxruntime as o; print(json.dumps(o.get_available_providers()))"
    answer = _printed(program)
    try:
        names = json.loads(answer)
    except ValueError:
        return ()
    return tuple(filter(lambda name: isinstance(name, str), names if names is not None else ()))


def _printed(program: str) -> str:
    """Return the last line that ``program`` prints in a Python of its own, empty if it fails.

    It is a child process because a binding without its library may end the process that imports it.
    """
    # Nothing must be imported from the working directory; PYTHONSAFEPATH needs Python 3.11.
    apart = "import sys; sys.path[:] = filter(None, sys.path)"
    lines = _answer([sys.executable, "-c", f"{apart}; {program}"]).splitlines()
    return lines[-1] if lines else ""


def _answer(words: list[str]) -> str:
    """Return what a program prints, empty if it cannot run, fails or takes too long."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=_CHILD_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def system_text(path: Path, limit_bytes: int = _LIMIT_BYTES) -> str:
    """Return the first ``limit_bytes`` of the regular file ``path`` as UTF-8, else nothing.

    What is not UTF-8 becomes U+FFFD. Unlike :func:`toolchain.core.files.read_limited` it takes
    files whose size reads as zero, as those of /proc do, and cuts off what is longer.
    """
    try:
        # O_NONBLOCK: if a pipe is in its place, open would wait for a writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ""
        data = b""
        while len(data) < limit_bytes and (part := os.read(handle, limit_bytes - len(data))):
            data += part
    except OSError:
        return ""
    finally:
        os.close(handle)
    return data.decode(errors="replace")


def first_match(root: Path, folders: Iterable[str], pattern: str) -> str | None:
    """Return group 1 of the first file name in ``folders`` below ``root`` that is ``pattern``."""
    for folder in folders:
        try:
            names = sorted(entry.name for entry in os.scandir(root / folder))
        except OSError:
            continue
        for name in names:
            if match := re.fullmatch(pattern, name):
                return match[1]
    return None
