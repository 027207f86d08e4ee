"""One TensorRT plan on a device: deserialised, and its interface checked.

Rules of this file: TensorRT answers with None or False where something is wrong. That becomes one
of our errors here, with TensorRT's own first line. A plan's interface is checked once, so that a
request cannot hand over an address or a shape that the engine does not expect. Only name-based
tensors are used (TensorRT 8.5 and later, RTX); nothing runs here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from toolchain.core.errors import (
    BundleError,
    Da3Error,
    DeviceMemoryError,
    EngineError,
    EngineMismatchError,
)
from toolchain.device.boards.cuda import Cuda
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.log import Messages

# Element types that cross an engine's border, as DataType names them, and their bytes.
ELEMENT_BYTES = {
    "FLOAT": 4,
    "HALF": 2,
    "BF16": 2,
    "INT8": 1,
    "BOOL": 1,
    "UINT8": 1,
    "INT32": 4,
    "INT64": 8,
}
REBUILD = "build the engine again: da3 build"


@dataclass(frozen=True, slots=True)
class TrtDevice:
    """Where engines run: the driver and TensorRT."""

    cuda: Cuda
    trt: TensorRT

    @property
    def title(self) -> str:
        """TensorRT and GPU, as messages name them."""
        return f"{self.trt.name} {self.trt.build} on {self.cuda.gpu.name} (SM {self.cuda.gpu.sm})"


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """One input or output: -1 in ``shape`` is the class count.

    ``element``: its DataType's name; ``low`` and ``high``: the profile's ends of an open input.
    """

    name: str
    is_input: bool
    shape: tuple[int, ...]
    element: str
    low: tuple[int, ...] = ()
    high: tuple[int, ...] = ()

    def nbytes(self, classes: int) -> int:
        """Return its size in bytes with that many classes."""
        sides = [classes if d == -1 else d for d in self.shape]
        return int(np.prod(sides, dtype=np.int64)) * ELEMENT_BYTES[self.element]

    def __str__(self) -> str:
        return f"{self.element} {list(self.shape)}"


class Plan:
    """A deserialised plan; any number of contexts run it.

    ``data``: the plan's bytes, verified by whoever read them. ``what``: what messages call it.
    Raises EngineMismatchError where this TensorRT does not take it, EngineError for a TensorRT that
    cannot run plans by tensor names, BundleError for an interface that no plan of ours has.
    """

    def __init__(self, device: TrtDevice, data: bytes, *, what: str) -> None:
        self.what = what
        self._device = device
        _require_names(device)
        with device.trt.journal.watch() as messages:
            # The documentation wants the runtime to outlive its engines.
            self._runtime = device.trt.module.Runtime(device.trt.logger)
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise _refused(device, what, len(data), messages)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors: Mapping[str, PlanTensor] = MappingProxyType(
            {n: self._tensor(n) for n in names}
        )

    @property
    def inputs(self) -> dict[str, PlanTensor]:
        """What goes in, by name."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.is_input}

    @property
    def outputs(self) -> dict[str, PlanTensor]:
        """What comes out, by name."""
        return {name: tensor for name, tensor in self.tensors.items() if not tensor.is_input}

    def context(self) -> Any:
        """Return a new IExecutionContext.

        Raises DeviceMemoryError, as that is what it needs, and EngineError for a second one where
        contexts cannot share a profile (TensorRT before 10, ``PROFILE_SHARING_0806``).
        """
        with self._device.trt.journal.watch() as messages:
            context = self._engine.create_execution_context()
        if context is None:
            raise _no_memory(self._device, f"{self.what}: a context", self._scratch_bytes, messages)
        if context.active_optimization_profile < 0:
            raise EngineError(
                f"{self.what}: {self._device.trt.name} {self._device.trt.build} gives the engine's "
                "one profile to one context alone",
                fix="run with contexts=1",
            )
        return context

    @property
    def _scratch_bytes(self) -> int:
        # The first name is gone from 11 on, the second came with 10.1.
        v2 = getattr(self._engine, "device_memory_size_v2", None)
        return int(self._engine.device_memory_size if v2 is None else v2)

    def _tensor(self, name: str) -> PlanTensor:
        modes = self._device.trt.module.TensorIOMode
        is_input = self._engine.get_tensor_mode(name) == modes.INPUT
        shape = tuple(self._engine.get_tensor_shape(name))
        element = self._element(name)
        if not is_input or -1 not in shape:
            return PlanTensor(name, is_input, shape, element)
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        return PlanTensor(name, is_input, shape, element, tuple(low), tuple(high))

    def _element(self, name: str) -> str:
        dtype, types = self._engine.get_tensor_dtype(name), self._device.trt.module.DataType
        for element in ELEMENT_BYTES:
            # Older releases have no BF16, UINT8 or INT64.
            if getattr(types, element, None) == dtype:
                return element
        raise BundleError(
            f"{self.what}: {name}: expected one of {', '.join(ELEMENT_BYTES)}, got {dtype}",
            fix=REBUILD,
        )


def class_range(tensors: Iterable[PlanTensor]) -> tuple[int, int] | None:
    """Return the class counts that the profiles allow, None where no input has an open dimension.

    Raises BundleError unless all open dimensions have one range, as there is one class count.
    """
    ranges = {
        (low, high)
        for tensor in tensors
        # Not strict: a tensor without an open dimension has no ends.
        for side, low, high in zip(tensor.shape, tensor.low, tensor.high, strict=False)
        if side == -1
    }
    if len(ranges) > 1:
        raise BundleError(
            f"expected one range of class counts in the engine's profile, got {sorted(ranges)}",
            fix=REBUILD,
        )
    return ranges.pop() if ranges else None


def _refused(device: TrtDevice, what: str, nbytes: int, messages: Messages) -> Da3Error:
    """Return the error for a plan that was not taken: memory was short, or it is another's."""
    if messages.short_of_memory:
        return _no_memory(device, f"{what}: its plan", nbytes, messages)
    return EngineMismatchError(
        f"{what}: {device.title} does not take the plan: {messages.first or 'no reason given'}",
        fix=f"an engine runs on the device and TensorRT that built it; {REBUILD}",
    )


def _no_memory(device: TrtDevice, what: str, nbytes: int, messages: Messages) -> DeviceMemoryError:
    free, total = device.cuda.memory()
    return DeviceMemoryError(
        f"{what} needs about {nbytes} bytes of device memory, got {free} free of {total}: "
        f"{messages.first or 'no reason given'}",
        fix="close other programs, or run with contexts=1",
    )


def _require_names(device: TrtDevice) -> None:
    if not device.trt.features.named_io:
        raise EngineError(
            f"expected a TensorRT that runs engines by tensor names (8.5 or later), "
            f"got {device.trt.build}",
            fix="run the engine on a board with JetPack 5.1 or later",
        )
