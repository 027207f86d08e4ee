"""A device in memory that keeps to the rules of the CUDA driver, and tells who breaks them.

Streams are queues: what is queued is executed when somebody waits for the stream or asks whether it
is idle, and at no other time, so that nothing which reads too early sees a result. Fresh device
memory and the target of a copy under way hold no zeros but :data:`POISON`.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DeviceError, DeviceMemoryError
from toolchain.device.boards.cuda import Bytes, Gpu

# As float32 it is not a number.
POISON = 0xFF
ALIGN = 256
GPU = Gpu("simulated", "8.7", 8, 1 << 30, True, "12.6")


class Misuse(AssertionError):
    """A rule of the driver or of TensorRT was broken."""


def rule(kept: bool, broken: str) -> None:
    """Raise unless a rule is kept."""
    if not kept:
        raise Misuse(broken)


@dataclass
class Operation:
    """Something queued; it may touch ``device`` blocks and ``host`` blocks until it is done."""

    run: Callable[[], None]
    device: tuple[int, ...]
    host: tuple[int, ...] = ()
    owner: object = None
    thread: int = field(default_factory=threading.get_ident)


@dataclass
class Counts:
    """What was asked of the device so far."""

    allocations: int = 0
    pinned: int = 0
    streams: int = 0
    uploads: int = 0
    downloads: int = 0
    executions: int = 0
    addresses: int = 0


class SimulatedCuda:
    """Implements :class:`toolchain.device.boards.cuda.Cuda`."""

    def __init__(self, total: int = 1 << 30) -> None:
        self.gpu = GPU
        self.total = total
        self.count = Counts()
        self._next = itertools.count(1)
        self._top = 1 << 20
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}
        self._pinned: dict[int, npt.NDArray[np.uint8]] = {}
        self._streams: dict[int, deque[Operation]] = {}
        self._turns: dict[int, threading.Lock] = {}
        self._lock = threading.RLock()
        self._free_to_run = threading.Event()
        self._free_to_run.set()
        self._fault = ""

    # -- what a test sees and does -----------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes allocated on the device now."""
        with self._lock:
            return sum(block.size for block in self._blocks.values())

    @property
    def open(self) -> tuple[int, int, int]:
        """Device blocks, pinned blocks and streams that nobody gave back yet."""
        with self._lock:
            return len(self._blocks), len(self._pinned), len(self._streams)

    def stall(self) -> None:
        """Execute nothing until :meth:`resume`, as a device that is busy."""
        self._free_to_run.clear()

    def resume(self) -> None:
        """Execute again."""
        self._free_to_run.set()

    def fail(self, message: str = "CUDA_ERROR_LAUNCH_FAILED") -> None:
        """Let the next operation that is executed fail."""
        self._fault = message

    # -- memory ------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        rule(nbytes > 0, f"cuMemAlloc of {nbytes} bytes is CUDA_ERROR_INVALID_VALUE")
        with self._lock:
            if nbytes > (free := self.total - self.used):
                raise DeviceMemoryError(f"asked for {nbytes} bytes of device memory, {free} free")
            self.count.allocations += 1
            # A gap behind each block, so that running over an end hits nothing.
            pointer, self._top = self._top, self._top + -(-nbytes // ALIGN) * ALIGN + 4096
            self._blocks[pointer] = np.full(nbytes, POISON, np.uint8)
            return pointer

    def free(self, pointer: int) -> None:
        with self._lock:
            rule(pointer in self._blocks, f"freed {pointer:#x}, which is no block or was freed")
            self._require_unqueued("device", pointer)
            del self._blocks[pointer]

    def pinned(self, nbytes: int) -> Bytes:
        rule(nbytes > 0, f"cuMemHostAlloc of {nbytes} bytes is CUDA_ERROR_INVALID_VALUE")
        with self._lock:
            self.count.pinned += 1
            array = np.full(nbytes, POISON, np.uint8)
            self._pinned[_start(array)] = array
            return array

    def unpin(self, array: Bytes) -> None:
        with self._lock:
            start = _start(array)
            rule(start in self._pinned, "unpinned memory that is not pinned")
            self._require_unqueued("host", start)
            del self._pinned[start]

    def memory(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    # -- streams -----------------------------------------------------------------------------------

    def stream(self) -> int:
        with self._lock:
            self.count.streams += 1
            number = next(self._next)
            self._streams[number] = deque()
            self._turns[number] = threading.Lock()
            return number

    def close_stream(self, stream: int) -> None:
        with self._lock:
            rule(not self._queue(stream), f"closed the stream {stream}, which is not idle")
            del self._streams[stream], self._turns[stream]

    def upload(self, target: int, source: npt.NDArray[Any], stream: int) -> None:
        host, device = self._host(source), self._device(target, source.nbytes)
        content = source.tobytes()

        def copy() -> None:
            rule(source.tobytes() == content, "changed host memory while a copy of it was queued")
            self.write(target, np.frombuffer(content, np.uint8))

        self.count.uploads += 1
        self.queue(stream, Operation(copy, (device,), (host,)))

    def download(self, target: npt.NDArray[Any], source: int, stream: int) -> None:
        host, device = self._host(target), self._device(source, target.nbytes)
        view = target.reshape(-1).view(np.uint8)
        view[:] = POISON

        def copy() -> None:
            view[:] = self.read(source, target.nbytes)

        self.count.downloads += 1
        self.queue(stream, Operation(copy, (device,), (host,)))

    def wait(self, stream: int) -> None:
        while True:
            self._free_to_run.wait()
            if not self._step(stream):
                return

    def idle(self, stream: int) -> bool:
        if self._free_to_run.is_set():
            self._step(stream)
        with self._lock:
            return not self._queue(stream)

    # -- what TensorRT uses ------------------------------------------------------------------------

    def queue(self, stream: int, operation: Operation) -> None:
        """Queue something that is executed with the stream."""
        with self._lock:
            self._queue(stream).append(operation)

    def queued(self) -> list[tuple[int, Operation]]:
        """Return all that is queued with its stream."""
        with self._lock:
            return [(s, o) for s, queue in self._streams.items() for o in queue]

    def block(self, address: int, nbytes: int) -> int:
        """Return the block that holds ``nbytes`` at ``address``; breaks a rule if none does."""
        return self._device(address, nbytes)

    def read(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return device bytes."""
        with self._lock:
            start = self._device(address, nbytes)
            return self._blocks[start][address - start : address - start + nbytes].copy()

    def write(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        """Set device bytes."""
        with self._lock:
            start = self._device(address, data.size)
            self._blocks[start][address - start : address - start + data.size] = data

    # -- inside ------------------------------------------------------------------------------------

    def _step(self, stream: int) -> bool:
        """Execute the oldest operation of a stream; return whether there was one."""
        with self._lock:
            self._queue(stream)
            turn = self._turns[stream]
        with turn:
            with self._lock:
                queue = self._queue(stream)
                if not queue:
                    return False
                operation, fault, self._fault = queue[0], self._fault, ""
            try:
                if fault:
                    raise DeviceError(f"the device failed: {fault}")
                operation.run()
            except BaseException:
                # A stream that failed executes nothing of what was queued behind.
                with self._lock:
                    queue.clear()
                raise
            with self._lock:
                queue.popleft()
            return True

    def _queue(self, stream: int) -> deque[Operation]:
        rule(stream in self._streams, f"used the stream {stream}, which was closed or never opened")
        return self._streams[stream]

    def _device(self, address: int, nbytes: int) -> int:
        with self._lock:
            for start, block in self._blocks.items():
                if start <= address < start + block.size:
                    over = address + nbytes - start - block.size
                    rule(over <= 0, f"ran {over} bytes over the end of a device block")
                    return start
        raise Misuse(f"used device memory at {address:#x}, which was freed or never allocated")

    def _host(self, array: npt.NDArray[Any]) -> int:
        rule(array.flags.c_contiguous, "copied host memory that is not contiguous")
        first = _start(array)
        with self._lock:
            for start, block in self._pinned.items():
                if start <= first and first + array.nbytes <= start + block.size:
                    return start
        raise Misuse("copied host memory that is not pinned")

    def _require_unqueued(self, side: str, start: int) -> None:
        used = any(start in getattr(operation, side) for _, operation in self.queued())
        rule(not used, "gave memory back that something queued still uses")


def _start(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
