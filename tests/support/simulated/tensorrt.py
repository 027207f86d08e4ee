"""TensorRT in memory: the part of its Python interface that runs a plan.

A plan is bytes that hold an ONNX model, which onnxruntime runs when the stream gets there; the
build that wrote it; and the optimisation profile. Names are those of NVIDIA's bindings (10.3 and
11.4 have them all). The rules are those of the Python documentation of ``ICudaEngine`` and
``IExecutionContext``: addresses of 256-byte alignment set for every tensor, shapes set for every
dynamic input and inside the profile (else ``set_input_shape`` returns False and nothing changes),
buffers large enough, one context on one stream and in one thread at a time.
"""

from __future__ import annotations

import enum
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.support.simulated.cuda import ALIGN, Operation, SimulatedCuda, rule

MAGIC = b"simulated plan\n"
Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]


class TensorIOMode(enum.Enum):
    """Whether a tensor goes in or comes out."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    """Element types."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.dtype(np.float32)),
    "tensor(float16)": (DataType.HALF, np.dtype(np.float16)),
    "tensor(bool)": (DataType.BOOL, np.dtype(np.bool_)),
    "tensor(int32)": (DataType.INT32, np.dtype(np.int32)),
    "tensor(int64)": (DataType.INT64, np.dtype(np.int64)),
    "tensor(uint8)": (DataType.UINT8, np.dtype(np.uint8)),
}


class ILogger:
    """What a logger of ours derives from."""

    class Severity(enum.IntEnum):
        """How bad a line is."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        """Take a line."""


class Logger(ILogger):
    """The one that prints, which tests need not."""

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        self.min_severity = min_severity


def plan(model: bytes, profile: Profile | None = None, *, build: str = "10.3.0") -> bytes:
    """Return a plan over a self-contained ONNX model; ``profile``: min, opt, max by input."""
    head = json.dumps({"build": build, "profile": profile or {}}).encode()
    body = len(head).to_bytes(8, "little") + head + model
    return MAGIC + hashlib.sha256(body).digest() + body


def module(cuda: SimulatedCuda, build: str = "10.3.0", *, shared: bool = True) -> ModuleType:
    """Return the module as ``import tensorrt`` would on the device ``cuda``.

    ``shared``: whether contexts share a profile, as from TensorRT 10 on.
    """
    package = ModuleType("tensorrt")
    vars(package).update(
        __version__=build,
        Runtime=lambda logger: Runtime(cuda, build, logger, shared),
        Logger=Logger,
        ILogger=ILogger,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
    )
    return package


class Runtime:
    """Deserialises plans of its own build."""

    def __init__(self, cuda: SimulatedCuda, build: str, logger: ILogger, shared: bool) -> None:
        self._cuda, self._build, self.logger, self._shared = cuda, build, logger, shared

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """Return the engine, or None after a line in the log."""
        data = bytes(serialized_engine)
        body = data[len(MAGIC) + 32 :]
        if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) :][:32]:
            self.logger.log(ILogger.ERROR, "Serialization assertion magicTagRead == kMAGIC failed.")
            return None
        length = int.from_bytes(body[:8], "little")
        head, model = json.loads(body[8 : 8 + length]), body[8 + length :]
        if head["build"] != self._build:
            self.logger.log(
                ILogger.ERROR,
                f"The engine plan file is not compatible with this version of TensorRT, expecting "
                f"library version {self._build} got {head['build']}, please rebuild.",
            )
            return None
        made = ICudaEngine(self._cuda, self.logger, model, head["profile"])
        made._shared = self._shared
        return made


class ICudaEngine:
    """A deserialised plan."""

    def __init__(
        self, cuda: SimulatedCuda, logger: ILogger, model: bytes, profile: Profile
    ) -> None:
        self._cuda, self._logger, self._profile = cuda, logger, profile
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._io = {
            value.name: SimpleNamespace(
                mode=mode,
                shape=tuple(d if isinstance(d, int) else -1 for d in value.shape),
                dtype=_TYPES[value.type][0],
                numpy=_TYPES[value.type][1],
            )
            for mode, values in (
                (TensorIOMode.INPUT, self._session.get_inputs()),
                (TensorIOMode.OUTPUT, self._session.get_outputs()),
            )
            for value in values
        }
        self.device_memory_size_v2 = 4096
        self._runs = 0
        self._shared, self._contexts = True, 0

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self._io]
        return names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        mode: TensorIOMode = self._io[name].mode if name in self._io else TensorIOMode.NONE
        return mode

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._io[name].shape
        return shape

    def get_tensor_dtype(self, name: str) -> DataType:
        dtype: DataType = self._io[name].dtype
        return dtype

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        rule(profile_index == 0, f"there is one profile, got number {profile_index}")
        rule(self._io[name].mode is TensorIOMode.INPUT, f"{name} has no profile, it is no input")
        shapes = self._profile.get(name, [self._io[name].shape] * 3)
        return [tuple(shape) for shape in shapes]

    def create_execution_context(self) -> IExecutionContext | None:
        if self._cuda.memory()[0] < self.device_memory_size_v2:
            self._logger.log(ILogger.ERROR, "Out of memory: cannot allocate context memory")
            return None
        self._contexts += 1
        return IExecutionContext(self, 0 if self._shared or self._contexts == 1 else -1)


class IExecutionContext:
    """What runs an engine: addresses, shapes, and a queue that it puts its work on."""

    def __init__(self, engine: ICudaEngine, profile: int) -> None:
        self.engine = engine
        self.active_optimization_profile = profile
        self._cuda = engine._cuda
        self._scratch = self._cuda.allocate(engine.device_memory_size_v2)
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._entered = threading.Lock()

    def __del__(self) -> None:
        self._cuda.free(self._scratch)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        with self._alone():
            rule(self.engine.get_tensor_mode(name) is TensorIOMode.INPUT, f"{name!r} is no input")
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
            sides = tuple(shape)
            if len(sides) != len(low) or not all(
                a <= b <= c for a, b, c in zip(low, sides, high, strict=True)
            ):
                self.engine._logger.log(ILogger.ERROR, f"{name}: {sides} is outside the profile")
                return False
            self._shapes[name] = sides
            return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        with self._alone():
            return self._shape(name)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            if self.engine.get_tensor_mode(name) is TensorIOMode.NONE:
                self.engine._logger.log(ILogger.ERROR, f"{name!r} is no I/O tensor")
                return False
            rule(memory % ALIGN == 0, f"{name}: {memory:#x} is not aligned to {ALIGN} bytes")
            self._addresses[name] = memory
            self._cuda.count.addresses += 1
            return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def infer_shapes(self) -> list[str]:
        with self._alone():
            return self._open()

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self._open()

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone():
            io = self.engine._io
            if missing := self._open():
                self.engine._logger.log(ILogger.ERROR, f"no shape for {missing}")
                return False
            unset = [name for name in io if name not in self._addresses]
            rule(not unset, f"execute_async_v3 without an address for {unset}")
            elsewhere = {s for s, o in self._cuda.queued() if o.owner is self} - {stream_handle}
            rule(not elsewhere, "one context runs on two streams at once")
            # A queued run keeps to what was set when it was queued.
            places = {
                name: (self._addresses[name], self._shape(name), value.numpy)
                for name, value in io.items()
            }
            blocks = tuple(
                self._cuda.block(address, _nbytes(shape, dtype))
                for address, shape, dtype in places.values()
            )
            operation = Operation(
                lambda: self._compute(places), (*blocks, self._scratch), owner=self
            )
            self._cuda.queue(stream_handle, operation)
            self._cuda.count.executions += 1
            return True

    def _compute(self, places: Mapping[str, tuple[int, tuple[int, ...], np.dtype[Any]]]) -> None:
        io, feeds = self.engine._io, {}
        self.engine._runs += 1
        for name, (address, shape, dtype) in places.items():
            if io[name].mode is TensorIOMode.INPUT:
                data = self._cuda.read(address, _nbytes(shape, dtype))
                feeds[name] = data.view(dtype).reshape(shape)
        outputs = [name for name, value in io.items() if value.mode is TensorIOMode.OUTPUT]
        for name, value in zip(outputs, self.engine._session.run(outputs, feeds), strict=True):
            rule(value.shape == places[name][1], f"{name}: {value.shape}, not as inferred")
            self._cuda.write(places[name][0], np.frombuffer(value.tobytes(), np.uint8))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape as far as the inputs' tell it: one open dimension for all."""
        declared: tuple[int, ...] = self.engine._io[name].shape
        if self.engine._io[name].mode is TensorIOMode.INPUT:
            return self._shapes.get(name, declared)
        sizes = {
            size
            for slot, shape in self._shapes.items()
            for size, was in zip(shape, self.engine._io[slot].shape, strict=True)
            if was == -1
        }
        if self._open() or len(sizes) > 1:
            return declared
        return tuple(next(iter(sizes), -1) if d == -1 else d for d in declared)

    def _open(self) -> list[str]:
        return [
            name
            for name, value in self.engine._io.items()
            if value.mode is TensorIOMode.INPUT and -1 in self._shapes.get(name, value.shape)
        ]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        rule(self._entered.acquire(blocking=False), "two threads use one context at once")
        try:
            mine = threading.get_ident()
            others = [o for _, o in self._cuda.queued() if o.owner is self and o.thread != mine]
            rule(not others, "a thread uses a context while another one's run is queued")
            yield
        finally:
            self._entered.release()


def _nbytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
