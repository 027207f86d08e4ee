"""The CUDA driver library: which calls it has, and what its result codes mean.

Rules of this file: ctypes declarations of the driver API as cuda.h has them (sizes and the ``_v2``
names are those of CUDA 3.2 and later), loading, and errors. Nothing is loaded at import.
:mod:`toolchain.device.boards.cuda` uses the calls. Source: CUDA Driver API reference,
docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from typing import Any

from toolchain.core.errors import DeviceError

LIBRARY = "libcuda.so.1"
# CUresult of cuda.h.
OUT_OF_MEMORY, NO_DEVICE, NOT_READY = 2, 100, 600
_STUB = 34
# After one of these, every call of the context returns the same code.
_LOST = range(700, 720)
_INT, _UINT, _SIZE = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_ADDRESS, _DEVICE_ADDRESS = ctypes.c_void_p, ctypes.c_uint64
_CALLS: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuGetErrorName": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(_SIZE), _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_ADDRESS), _INT),
    # The same as cuDevicePrimaryCtxRelease_v2, which CUDA 10.2 of the oldest boards lacks.
    "cuDevicePrimaryCtxRelease": (_INT,),
    "cuCtxSetCurrent": (_ADDRESS,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(_DEVICE_ADDRESS), _SIZE),
    "cuMemFree_v2": (_DEVICE_ADDRESS,),
    "cuMemHostAlloc": (ctypes.POINTER(_ADDRESS), _SIZE, _UINT),
    "cuMemFreeHost": (_ADDRESS,),
    "cuStreamCreate": (ctypes.POINTER(_ADDRESS), _UINT),
    "cuStreamDestroy_v2": (_ADDRESS,),
    "cuStreamQuery": (_ADDRESS,),
    "cuStreamSynchronize": (_ADDRESS,),
    "cuMemcpyHtoDAsync_v2": (_DEVICE_ADDRESS, _ADDRESS, _SIZE, _ADDRESS),
    "cuMemcpyDtoHAsync_v2": (_ADDRESS, _DEVICE_ADDRESS, _SIZE, _ADDRESS),
}


class Driver:
    """The library, its calls declared; ``result`` gives a code, ``call`` raises for one."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._calls: dict[str, Any] = {}
        for call, arguments in _CALLS.items():
            try:
                function = getattr(library, call)
            except AttributeError as err:
                raise DeviceError(
                    f"expected the CUDA driver's {call} in {name}, got none",
                    fix="install the driver of the card, or its JetPack, again",
                ) from err
            function.argtypes, function.restype = arguments, _INT
            self._calls[call] = function

    @staticmethod
    def load(library: str) -> Driver | None:
        """Return the driver, None where the machine has none.

        Raises DeviceError for a library that is there and cannot be used.
        """
        try:
            return Driver(ctypes.CDLL(library), library)
        except OSError as err:
            # A library that this one needs is named in its place.
            if sys.platform != "linux" or re.search(rf"{re.escape(library)}: .*No such", str(err)):
                return None
            raise DeviceError(
                f"expected the CUDA driver in {library}, got {err}",
                fix="in a container, start it with --runtime nvidia or --gpus all; else install "
                "the driver, or its JetPack, again",
            ) from err

    def start(self) -> bool:
        """Initialise the driver; False where it sees no device, DeviceError if it is broken."""
        code = self.result("cuInit", 0)
        if code != NO_DEVICE:
            self.check(code, "starting the CUDA driver")
        return code != NO_DEVICE

    def result(self, name: str, *arguments: Any) -> int:
        """Call ``name`` and return its result code."""
        code: int = self._calls[name](*arguments)
        return code

    def call(self, what: str, name: str, *arguments: Any) -> None:
        """Call ``name``; ``what`` says in an error what it was called for. Raises DeviceError."""
        self.check(self.result(name, *arguments), what)

    def check(self, code: int, what: str) -> None:
        """Raise DeviceError, with the driver's own name of the code, unless it is success."""
        if code != 0:
            raise DeviceError(f"{what}: expected success, got {self._named(code)}", fix=_fix(code))

    def _named(self, code: int) -> str:
        words = []
        for call in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            self.result(call, code, ctypes.byref(text))
            words.append((text.value or b"").decode(errors="replace"))
        name, meaning = words
        return f"{name or f'CUDA error {code}'}{f' ({meaning})' if meaning else ''}"


def _fix(code: int) -> str:
    if code in _LOST:
        return "what ran on the device failed and took the context with it: start the process again"
    if code == _STUB:
        return (
            "this libcuda.so.1 only stands in for a driver: remove the stubs from the library path"
        )
    return "look at nvidia-smi, on a Jetson at sudo dmesg; restart if the driver was updated"
