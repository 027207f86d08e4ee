"""Device memory as requests use it: one block per owner, places in it, given back exactly once.

Rules of this file: every handle has one owner that gives it back when the last reference to it
goes, in whichever thread that is; nothing here runs a model. Offsets are multiples of ``ALIGN``, as
TensorRT wants of every address that it is given (``IExecutionContext::setTensorAddress``).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DeviceError
from toolchain.device.boards.cuda import Bytes, Cuda

ALIGN = 256
# Two bindings are never taken for one another, also when one got the memory that another had.
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tensors lie in one block: offset and size in bytes by name; ``nbytes`` of the whole."""

    places: Mapping[str, tuple[int, int]]
    nbytes: int


def layout(sizes: Mapping[str, int]) -> Layout:
    """Return places for tensors of ``sizes`` bytes, in order, none over another."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, size in sizes.items():
        places[name] = (end, size)
        end += -(-size // ALIGN) * ALIGN
    return Layout(places, end)


class DeviceBlock:
    """One allocation on the device. Raises DeviceMemoryError."""

    def __init__(self, cuda: Cuda, places: Layout) -> None:
        self.layout = places
        # Zero bytes are no allocation: the driver refuses them (cuMemAlloc).
        self._pointer = cuda.allocate(places.nbytes) if places.nbytes else 0
        if self._pointer:
            owned(self, cuda.free, self._pointer)

    def address(self, name: str) -> int:
        """Return the device address of a tensor of the layout."""
        return self._pointer + self.layout.places[name][0]


class PinnedBlock:
    """Page-locked host memory of one layout. Raises DeviceMemoryError."""

    def __init__(self, cuda: Cuda, places: Layout) -> None:
        self.layout = places
        self._bytes = cuda.pinned(places.nbytes)
        owned(self, cuda.unpin, self._bytes)

    def view(self, name: str, nbytes: int | None = None) -> Bytes:
        """Return a tensor's bytes, all or the first ``nbytes`` of them."""
        first, size = self.layout.places[name]
        return self._bytes[first : first + (size if nbytes is None else nbytes)]

    @property
    def whole(self) -> Bytes:
        """All bytes."""
        return self._bytes


class DeviceSlots:
    """A domain's tensors on the device, in one allocation; freed with the last reference.

    ``number``: of this binding, never used twice. ``shapes`` by slot.
    """

    def __init__(self, cuda: Cuda, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.number = next(_NUMBERS)
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self._block = DeviceBlock(cuda, layout({n: a.nbytes for n, a in arrays.items()}))
        if self._block.layout.nbytes:
            _fill(cuda, self._block, arrays)

    @property
    def slots(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing: no run reads this process's memory."""
        return {}

    @property
    def nbytes(self) -> int:
        """Device memory that it takes, in bytes."""
        return self._block.layout.nbytes

    def address(self, name: str) -> int:
        """Return the device address of a slot."""
        return self._block.address(name)


def owned(owner: object, give_back: Callable[..., object], *handles: object) -> None:
    """Call ``give_back(*handles)`` once, when ``owner`` goes; not when the process ends.

    At the end of the process the driver frees everything, and may be gone already. A device that
    failed refuses to take anything back. Whoever waited for it has been told.
    """
    weakref.finalize(owner, _quietly, give_back, *handles).atexit = False


def _quietly(give_back: Callable[..., object], *handles: object) -> None:
    with suppress(DeviceError):
        give_back(*handles)


def _fill(cuda: Cuda, block: DeviceBlock, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy arrays to their places, little-endian as they are, and wait until they are there."""
    staging = PinnedBlock(cuda, block.layout)
    for name, array in arrays.items():
        staging.view(name)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    stream = cuda.stream()
    try:
        # One copy for all of them: both blocks have the same layout, whose first tensor is at 0.
        cuda.upload(block.address(next(iter(arrays))), staging.whole, stream)
        cuda.wait(stream)
    finally:
        cuda.close_stream(stream)
