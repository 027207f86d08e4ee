"""From a network to a plan.

Rules of this file: one network, one plan, no files. TensorRT decides nothing silently here. TF32 is
off. Where networks are strongly typed, precision stands in the graph. Where they are not, flags ask
for it, and the nodes that the kit names are pinned to fp32. A plan that was built without a device
is for checks only, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from toolchain.core.errors import BuildError, PrecisionError
from toolchain.core.files import MIB
from toolchain.core.words import Precision
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import ClassProfile
from toolchain.device.engine.log import Messages, SkippedTactic
from toolchain.device.engine.parse import ParsedNetwork

# Optimisation levels of TensorRT; the default of its builder is 3.
LEVELS = range(6)
# Further layers of one ONNX node have its name and a number.
_FURTHER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build one plan.

    ``workspace_bytes``: memory for tactics, None to take it from what is free. ``level``:
    optimisation level 0 to 5, None for TensorRT's own. ``refit``: marked weights can be replaced in
    the engine. ``cpu_only``: build without a device, where the module can.
    """

    precision: Precision
    classes: ClassProfile
    workspace_bytes: int | None = None
    level: int | None = None
    refit: bool = False
    cpu_only: bool = False


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A serialised engine, and how it was built.

    ``skipped``: tactics that TensorRT left out for lack of memory. ``cpu_only``: no device chose
    its tactics, so it is not an engine for the machine at hand.
    """

    plan: bytes
    seconds: float
    workspace_bytes: int
    skipped: tuple[SkippedTactic, ...]
    warnings: tuple[str, ...]
    cpu_only: bool


def workspace(free_bytes: int) -> int:
    """Return how much of ``free_bytes`` tactics may use, in bytes, at least 16 MiB.

    A quarter, but at most half a GiB, stays for weights and activations, and for the system on
    boards where it shares the memory.
    """
    return max(16 * MIB, free_bytes - min(free_bytes // 4, 512 * MIB))


def build(
    network: ParsedNetwork,
    options: BuildOptions,
    *,
    free_bytes: int,
    pinned: Collection[str] = (),
    timing_cache: Any = None,
) -> BuiltPlan:
    """Return the plan of ``network``.

    ``free_bytes``: of the device, as the driver says. ``pinned``: ONNX nodes that stay fp32 where
    precision is a flag (:class:`KitModel`). ``timing_cache``: as
    :mod:`toolchain.device.engine.tactics` opened it. Raises PrecisionError for a precision that the
    module has no flag for, BuildError with TensorRT's first error, and with what was free where
    memory was short.
    """
    trt, size = network.trt, options.workspace_bytes or workspace(free_bytes)
    config = _config(network, options, size, frozenset(pinned))
    if timing_cache is not None:
        config.set_timing_cache(timing_cache, False)
    start = perf_counter()
    with trt.journal.watch() as messages:
        plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise _failed(trt, messages, size, free_bytes)
    return BuiltPlan(
        plan=bytes(plan),
        seconds=perf_counter() - start,
        workspace_bytes=size,
        skipped=tuple(messages.skipped),
        warnings=(*network.warnings, *messages.warnings),
        cpu_only=options.cpu_only,
    )


def _config(
    network: ParsedNetwork, options: BuildOptions, workspace_bytes: int, pinned: frozenset[str]
) -> Any:
    trt = network.trt
    config = network.builder.create_builder_config()
    _set_workspace(trt, config, workspace_bytes)
    _set_precision(network, config, options.precision, pinned)
    _set_device(trt, config, options.cpu_only)
    if options.level is not None:
        _set_level(trt, config, options.level)
    if options.refit:
        _set_refit(trt, config)
    _set_profile(network, config, options.classes)
    return config


def _set_workspace(trt: TensorRT, config: Any, nbytes: int) -> None:
    if trt.features.pools:
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, nbytes)
    else:
        config.max_workspace_size = nbytes


def _set_precision(
    network: ParsedNetwork, config: Any, precision: Precision, pinned: frozenset[str]
) -> None:
    """Set the flags of a precision. Where the graph has the precision, only TF32 is cleared."""
    trt, flag = network.trt, network.trt.module.BuilderFlag
    if trt.features.tf32:
        # TF32 is on by default: fp32 convolutions would silently have 10 bits of mantissa.
        config.clear_flag(flag.TF32)
    if precision == "fp32" or trt.features.typing != "absent":
        return
    has_flag = trt.features.fp16 if precision == "fp16" else trt.features.int8
    if not (has_flag and trt.features.constraints):
        raise PrecisionError(
            f"expected a TensorRT that builds {precision}, got {trt.name} {trt.build} without it",
            fix="build fp32",
        )
    # With INT8 alone, what the graph does not quantise stays fp32, as in the graph.
    config.set_flag(flag.FP16 if precision == "fp16" else flag.INT8)
    # Without this flag TensorRT may compute a pinned layer in another precision.
    config.set_flag(flag.OBEY_PRECISION_CONSTRAINTS)
    for layer in _layers(network, pinned):
        # Both are needed: in what the layer computes, and in what it gives its results.
        layer.precision = trt.module.DataType.FLOAT
        for place in range(layer.num_outputs):
            layer.set_output_type(place, trt.module.DataType.FLOAT)


def _layers(network: ParsedNetwork, pinned: frozenset[str]) -> Iterator[Any]:
    """Yield the layers of the ``pinned`` nodes that compute in floats: only they can be pinned."""
    definition = network.definition
    for place in range(definition.num_layers):
        layer = definition.get_layer(place)
        if not pinned.intersection((layer.name, _FURTHER.sub("", layer.name))):
            continue
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if outputs and all(tensor.dtype.name == "FLOAT" for tensor in outputs):
            yield layer


def _set_device(trt: TensorRT, config: Any, cpu_only: bool) -> None:
    if cpu_only and not trt.features.without_device:
        raise BuildError(
            f"expected a TensorRT that builds without a device, got {trt.name} {trt.build}",
            fix="build on the board itself; for checks on a PC install tensorrt-rtx",
        )
    if trt.features.without_device and not cpu_only:
        # Otherwise it builds for every card that it knows; this machine may be none of them.
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.module.ComputeCapability.CURRENT, 0)


def _set_level(trt: TensorRT, config: Any, level: int) -> None:
    if level not in LEVELS or not trt.features.level:
        can = f"0 to {LEVELS[-1]}" if trt.features.level else f"none ({trt.name} {trt.build})"
        raise BuildError(
            f"expected an optimisation level that can be set, {can}, got {level}",
            fix="leave the level out",
        )
    config.builder_optimization_level = level


def _set_refit(trt: TensorRT, config: Any) -> None:
    if not trt.features.refit_individual:
        raise BuildError(
            f"expected a TensorRT that refits single weights, got {trt.name} {trt.build}",
            fix="build the slots as inputs",
        )
    config.set_flag(trt.module.BuilderFlag.REFIT_INDIVIDUAL)


def _set_profile(network: ParsedNetwork, config: Any, classes: ClassProfile) -> None:
    """Set the class counts where a size is open (-1): every open size is the class count."""
    profile = network.builder.create_optimization_profile()
    sizes = (classes.low, classes.best, classes.high)
    dynamic = [tensor for tensor in network.inputs().values() if -1 in tuple(tensor.shape)]
    for tensor in dynamic:
        shape = tuple(tensor.shape)
        profile.set_shape(tensor.name, *(tuple(n if d == -1 else d for d in shape) for n in sizes))
    # TensorRT answers a profile that it refuses with -1 and raises nothing.
    if dynamic and config.add_optimization_profile(profile) < 0:
        names = ", ".join(tensor.name for tensor in dynamic)
        raise BuildError(
            f"expected the profile {sizes} to fit {names}, TensorRT refuses it",
            fix="check the kit's class counts",
        )


def _failed(trt: TensorRT, messages: Messages, workspace_bytes: int, free_bytes: int) -> BuildError:
    if messages.short_of_memory:
        most = max((one.requested_bytes for one in messages.skipped), default=0)
        skipped = (
            f", {len(messages.skipped)} tactics skipped that asked for up to {most // MIB} MiB"
        )
        return BuildError(
            f"{trt.name} {trt.build} ran out of memory: {free_bytes // MIB} MiB were free, "
            f"{workspace_bytes // MIB} MiB of these allowed as workspace{skipped if most else ''}\n"
            f"  {messages.first or messages.memory[0]}",
            fix="close other programs (the desktop too: sudo systemctl isolate multi-user), "
            "set --workspace lower, build fp16, or add a swap file",
        )
    return BuildError(
        f"{trt.name} {trt.build} could not build the engine: "
        f"{messages.first or 'it gives no reason'}",
        fix="da3 doctor says whether this machine can build; report the kit with this message",
    )
