"""The part of TensorRT in memory that builds: NVIDIA's own parser and networks, plans in memory.

Networks are those of ``tensorrt_rtx``, which needs no GPU, so what walks and repairs them meets the
real thing. Building keeps the parsed model as a simulated plan and adds a line to the timing cache,
as a build that measured something would. ``built`` is what was built, in order.
"""

from __future__ import annotations

import enum
import hashlib
from types import ModuleType
from typing import Any

import tensorrt_rtx

from tests.support.simulated import tensorrt
from tests.support.simulated.cuda import SimulatedCuda
from tests.support.simulated.engines import BUILD
from toolchain.device.engine import features
from toolchain.device.engine.log import Journal, make_logger
from toolchain.device.runtime.trt.plan import TrtDevice

REAL = (
    *("LayerType", "IConditionLayer", "IIfConditionalInputLayer", "IIfConditionalOutputLayer"),
    *("IIfConditional", "INetworkDefinition", "ILayer", "ITensor", "ParserError"),
)


class BuilderFlag(enum.Enum):
    """Those of TensorRT 10."""

    FP16 = 0
    INT8 = 1
    TF32 = 2
    EDITABLE_TIMING_CACHE = 3


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """Those of TensorRT 10."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    """The pool that is limited."""

    WORKSPACE = 0


class ITimingCache:
    """Lines of what was timed."""

    def __init__(self, data: bytes) -> None:
        self.lines = set(filter(None, data.split(b"\n")))

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class IBuilderConfig:
    """What a build is told."""

    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.builder_optimization_level = 3
        self.workspace = 0
        self.profile: dict[str, Any] = {}
        self.cache: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profile = profile.shapes
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another device may be used"
        self.cache = cache
        return True


class IOptimizationProfile:
    """Shapes of dynamic inputs."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self.shapes[input] = (list(min), list(opt), list(max))


class Bench:
    """What was built on one module."""

    def __init__(self, cuda: SimulatedCuda, build: str) -> None:
        self.cuda, self.build = cuda, build
        self.models: dict[int, bytes] = {}
        self.built: list[tuple[bytes, IBuilderConfig]] = []


class Builder:
    """Makes real networks and simulated plans."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._real = tensorrt_rtx.Builder(features.load("tensorrt_rtx").logger)

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED.value | 1
        return self._real.create_network(0)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes:
        model = self._bench.models[id(network)]
        self._bench.built.append((model, config))
        if config.cache is not None:
            config.cache.lines.add(hashlib.sha256(model).hexdigest().encode())
        return tensorrt.plan(model, config.profile, build=self._bench.build)


class OnnxParser:
    """NVIDIA's parser, which remembers what it parsed."""

    def __init__(self, bench: Bench, network: Any) -> None:
        self._bench, self._network = bench, network
        self._real = tensorrt_rtx.OnnxParser(network, features.load("tensorrt_rtx").logger)

    def parse(self, model: bytes) -> bool:
        self._bench.models[id(self._network)] = model
        parsed: bool = self._real.parse(model)
        return parsed

    @property
    def num_errors(self) -> int:
        count: int = self._real.num_errors
        return count

    def get_error(self, index: int) -> Any:
        return self._real.get_error(index)


def device(total: int = 1 << 30, build: str = BUILD) -> tuple[TrtDevice, Bench]:
    """A device in memory whose TensorRT builds too, and what was built on it."""
    cuda = SimulatedCuda(total)
    bench, made = Bench(cuda, build), tensorrt.module(cuda, build)
    _extend(made, bench)
    journal = Journal()
    library = features.TensorRT(
        made, "tensorrt", build, features.examine(made), make_logger(made, journal), journal
    )
    return TrtDevice(cuda, library), bench


def _extend(module: ModuleType, bench: Bench) -> None:
    vars(module).update(
        {name: getattr(tensorrt_rtx, name) for name in REAL},
        Builder=lambda logger: Builder(bench),
        OnnxParser=lambda network, logger: OnnxParser(bench, network),
        BuilderFlag=BuilderFlag,
        NetworkDefinitionCreationFlag=NetworkDefinitionCreationFlag,
        MemoryPoolType=MemoryPoolType,
        IBuilderConfig=IBuilderConfig,
        ITimingCache=ITimingCache,
        DataType=module.DataType,
    )
