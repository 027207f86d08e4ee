"""The CUDA driver as this project uses it: memory, streams, and what the device is.

Rules of this file: it uses the driver API only (``libcuda.so.1``). Every NVIDIA machine has it
under that one name, whatever its CUDA version, so a board needs no further package. It is loaded
when a function asks for it, never at import. What runs on the device is TensorRT's business.
:mod:`toolchain.device.boards.cudriver` declares the calls.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DeviceError, DeviceMemoryError
from toolchain.device.boards.cudriver import LIBRARY, NOT_READY, OUT_OF_MEMORY, Driver

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: ``sm`` is its compute capability (``8.7``), ``driver`` the CUDA it can run."""

    name: str
    sm: str
    multiprocessors: int
    memory_bytes: int
    integrated: bool
    driver: str


class Cuda(Protocol):
    """Memory and streams of one device; pointers and streams are plain integers.

    Copies and executions on one stream run in order, later than the call that queues them; host
    memory of a copy must be pinned and stay until its stream is idle.
    """

    gpu: Gpu

    def allocate(self, nbytes: int) -> int:
        """Return device memory. Raises DeviceMemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """Give device memory back; nothing queued may use it any more."""
        ...

    def pinned(self, nbytes: int) -> Bytes:
        """Return page-locked host memory, freed with :meth:`unpin`."""
        ...

    def unpin(self, array: Bytes) -> None:
        """Give page-locked memory back."""
        ...

    def stream(self) -> int:
        """Return a new stream, destroyed with :meth:`close_stream`."""
        ...

    def close_stream(self, stream: int) -> None:
        """Destroy an idle stream."""
        ...

    def upload(self, target: int, source: npt.NDArray[Any], stream: int) -> None:
        """Queue a copy of ``source`` (pinned, contiguous) to device memory."""
        ...

    def download(self, target: npt.NDArray[Any], source: int, stream: int) -> None:
        """Queue a copy of device memory to ``target`` (pinned, contiguous)."""
        ...

    def wait(self, stream: int) -> None:
        """Return when the stream is idle. Raises DeviceError for a fault of what ran there."""
        ...

    def idle(self, stream: int) -> bool:
        """Whether all that was queued has ended. Raises DeviceError as :meth:`wait`."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return free and total device memory in bytes."""
        ...


def gpus(library: str = LIBRARY) -> Sequence[Gpu]:
    """Return the devices of this machine; none without a driver or a device.

    Raises DeviceError, with the driver's own message, for a driver that does not start.
    """
    driver = Driver.load(library)
    if driver is None or not driver.start():
        return ()
    return tuple(_described(driver, index) for index in range(_count(driver)))


def open_cuda(index: int = 0, library: str = LIBRARY) -> CudaDevice:
    """Return device ``index``. Raises DeviceError where there is no driver or no such device.

    The device's primary context is used, which is that of TensorRT and of the CUDA runtime too.
    """
    driver = Driver.load(library)
    if driver is None:
        raise DeviceError(
            f"expected an NVIDIA driver, got no {library}",
            fix="install the driver (nvidia-smi must answer), on a Jetson its JetPack; start a "
            "container with --runtime nvidia or --gpus all",
        )
    count = _count(driver) if driver.start() else 0
    if not 0 <= index < count:
        raise DeviceError(
            f"expected CUDA device {index}, got a machine with {count}",
            fix="look at nvidia-smi -L; CUDA_VISIBLE_DEVICES hides devices",
        )
    return CudaDevice(driver, index)


class CudaDevice:
    """A device of the driver, with the calls of :class:`Cuda`; every one works from any thread.

    The context is set in each call: it is the thread's, and a thread may have come later or used
    another device in between. :meth:`close` gives the context back; nothing may be called then.
    """

    def __init__(self, driver: Driver, index: int) -> None:
        self.gpu = _described(driver, index)
        self._driver = driver
        self._device = _handle(driver, index)
        self._context = ctypes.c_void_p()
        self._pinned: dict[int, int] = {}
        self._lock = threading.Lock()
        context = ctypes.byref(self._context)
        driver.call(f"opening {index}", "cuDevicePrimaryCtxRetain", context, self._device)

    def close(self) -> None:
        """Give the device back; allocations that are left end with the process."""
        with self._lock:
            # Taken under the lock: if two threads close, only one gives the context back.
            open_, self._context = self._context, ctypes.c_void_p()
        if open_:
            self._driver.call("closing the device", "cuDevicePrimaryCtxRelease", self._device)

    def allocate(self, nbytes: int) -> int:
        """Return the address of ``nbytes`` of device memory.

        Raises DeviceMemoryError, which says what is free, and DeviceError.
        """
        pointer = ctypes.c_uint64()
        code = self._try("cuMemAlloc_v2", ctypes.byref(pointer), _length(nbytes))
        if code == OUT_OF_MEMORY:
            free, total = self.memory()
            raise DeviceMemoryError(
                f"expected {nbytes} bytes of device memory, got {free} free of {total} "
                f"on {self.gpu.name}",
                fix="close other programs, load fewer domains, or use an engine of lower precision",
            )
        self._driver.check(code, f"allocating {nbytes} bytes on {self.gpu.name}")
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give device memory back. Raises DeviceError for what is not allocated."""
        self._call("freeing device memory", "cuMemFree_v2", pointer)

    def pinned(self, nbytes: int) -> Bytes:
        """Return page-locked host memory, uint8 ``[nbytes]``.

        Raises DeviceMemoryError where no more can be locked, and DeviceError.
        """
        address = ctypes.c_void_p()
        size = _length(nbytes)
        # Portable (1): usable from every context, as the driver API has it.
        code = self._try("cuMemHostAlloc", ctypes.byref(address), size, 1)
        if code == OUT_OF_MEMORY:
            raise DeviceMemoryError(
                f"expected {nbytes} bytes of page-locked host memory, got none that can be locked",
                fix="close other programs, or raise the limit (ulimit -l)",
            )
        self._driver.check(code, f"locking {nbytes} bytes of host memory")
        assert address.value is not None  # the driver succeeded
        with self._lock:
            self._pinned[address.value] = size
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))[:nbytes]

    def unpin(self, array: Bytes) -> None:
        """Give page-locked memory back. Raises DeviceError for any other memory."""
        address = int(array.ctypes.data)
        with self._lock:
            known = self._pinned.pop(address, None)
        if known is None:
            raise DeviceError(
                "expected page-locked memory of this device, got another array, or a freed one",
                fix="unpin each array of pinned() once, as it was returned",
            )
        self._call("freeing page-locked memory", "cuMemFreeHost", address)

    def stream(self) -> int:
        """Return a new stream; work on the default stream does not wait for it (flag 1).

        Raises DeviceError.
        """
        stream = ctypes.c_void_p()
        self._call("making a stream", "cuStreamCreate", ctypes.byref(stream), 1)
        assert stream.value is not None  # zero is the default stream's own handle
        return stream.value

    def close_stream(self, stream: int) -> None:
        """Destroy an idle stream. Raises DeviceError."""
        self._call("closing a stream", "cuStreamDestroy_v2", stream)

    def upload(self, target: int, source: npt.NDArray[Any], stream: int) -> None:
        """Queue a copy of all bytes of ``source`` to the address ``target`` on the device.

        Raises DeviceError unless ``source`` is contiguous.
        """
        host = _address(source)
        self._call("copying to", "cuMemcpyHtoDAsync_v2", target, host, source.nbytes, stream)

    def download(self, target: npt.NDArray[Any], source: int, stream: int) -> None:
        """Fill ``target`` from the address ``source`` on the device, once the stream gets there.

        Raises DeviceError unless ``target`` is contiguous.
        """
        address = _address(target)
        self._call("copying from", "cuMemcpyDtoHAsync_v2", address, source, target.nbytes, stream)

    def wait(self, stream: int) -> None:
        """Return when the stream is idle. Raises DeviceError for a fault of what ran there."""
        self._call("waiting for", "cuStreamSynchronize", stream)

    def idle(self, stream: int) -> bool:
        """Whether all that was queued has ended. Raises DeviceError as :meth:`wait`."""
        code = self._try("cuStreamQuery", stream)
        if code == NOT_READY:
            return False
        self._driver.check(code, f"asking {self.gpu.name}")
        return True

    def memory(self) -> tuple[int, int]:
        """Return free and total device memory in bytes. Raises DeviceError."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("asking", "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _try(self, name: str, *arguments: Any) -> int:
        """Return the result code of ``name``, called in this device's context."""
        if not self._context:
            raise DeviceError(
                "expected an open device, got one that was closed", fix="open it again: open_cuda()"
            )
        self._driver.call(f"selecting {self.gpu.name}", "cuCtxSetCurrent", self._context)
        return self._driver.result(name, *arguments)

    def _call(self, doing: str, name: str, *arguments: Any) -> None:
        self._driver.check(self._try(name, *arguments), f"{doing} {self.gpu.name}")


def _count(driver: Driver) -> int:
    count = ctypes.c_int()
    driver.call("counting devices", "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _handle(driver: Driver, index: int) -> int:
    device = ctypes.c_int()
    driver.call(f"looking for device {index}", "cuDeviceGet", ctypes.byref(device), index)
    return device.value


# CUdevice_attribute of cuda.h.
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76


def _described(driver: Driver, index: int) -> Gpu:
    device, what = _handle(driver, index), f"asking device {index}"
    name, total, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    driver.call(what, "cuDeviceGetName", name, len(name), device)
    driver.call(what, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    driver.call(what, "cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name.value.decode(errors="replace"),
        sm=f"{_attribute(driver, device, _MAJOR)}.{_attribute(driver, device, _MINOR)}",
        multiprocessors=_attribute(driver, device, _MULTIPROCESSORS),
        memory_bytes=total.value,
        integrated=bool(_attribute(driver, device, _INTEGRATED)),
        # 1000 * major + 10 * minor: cuDriverGetVersion.
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(driver: Driver, device: int, key: int) -> int:
    value = ctypes.c_int()
    driver.call(f"asking device {device}", "cuDeviceGetAttribute", ctypes.byref(value), key, device)
    return value.value


def _length(nbytes: int) -> int:
    """Return what to ask the driver for, which refuses a length of zero."""
    if nbytes < 0:
        raise DeviceError(f"expected a number of bytes, got {nbytes}", fix="report it")
    return max(1, nbytes)


def _address(array: npt.NDArray[Any]) -> int:
    """Return where the array's bytes begin. Raises DeviceError unless they lie in one piece."""
    if not array.flags.c_contiguous:
        raise DeviceError(
            f"expected a contiguous array, got strides {array.strides} of shape {array.shape}",
            fix="copy it into pinned memory first",
        )
    return int(array.ctypes.data)
