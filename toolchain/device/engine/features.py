"""What an installed TensorRT module offers, by the names that it has.

Rules of this file: the one place for the differences between TensorRT 8.2, 8.5, 8.6, 10.x, 11.x and
TensorRT-RTX. A module has a feature if it has the name that the feature needs. No code compares
versions, here or elsewhere, because one JetPack's 10.3 and another's differ by more than a number.
The module is imported when somebody asks for it. Whoever uses a feature decides what to do with it.

The names that each release has come from the modules themselves (``dir`` of the bindings). The
listing is ``tests/goldens/tensorrt-apis.json``; ``tests/device/engine/test_features.py`` has the
table that this file must agree with.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from toolchain.core.errors import EngineError, UnknownNameError
from toolchain.device.boards import install
from toolchain.device.engine.log import Journal, make_logger

MODULES = ("tensorrt", "tensorrt_rtx")
Typing = Literal["absent", "flag", "implied"]


@dataclass(frozen=True, slots=True)
class Features:
    """What a module can do.

    ``typing``: strongly typed networks do not exist (precision is asked for by builder flags),
    exist by a flag beside the other kind, or are the only kind. ``explicit_batch``: networks need
    the flag of that name. ``pools``: memory limits by pool; else the attribute
    ``max_workspace_size``. ``constraints``: a layer's precision can be pinned and is obeyed.
    ``level``: the optimisation level can be set. ``timing_cache``: timings are measured and can be
    kept. ``error_nodes``: parser errors name node and operator. ``native_norm``: the parser can
    keep an InstanceNormalization whole. ``without_device``: builds for a named compute capability
    on a machine without a GPU. ``named_io``: tensors are set by name, not by binding index.
    """

    typing: Typing
    explicit_batch: bool
    pools: bool
    fp16: bool
    int8: bool
    constraints: bool
    tf32: bool
    level: bool
    refit_individual: bool
    timing_cache: bool
    error_nodes: bool
    native_norm: bool
    without_device: bool
    named_io: bool


@dataclass(frozen=True, slots=True)
class TensorRT:
    """A loaded module: ``build`` is its whole version, to which engines are tied.

    TensorRT writes to ``logger``, and ``journal`` passes the messages on. There is one of each per
    module, because TensorRT keeps one logger for the whole process and ignores later ones.
    """

    module: Any
    name: str
    build: str
    features: Features
    logger: Any
    journal: Journal


def load(name: str | None = None) -> TensorRT:
    """Return the module ``name``, or the first of :data:`MODULES` that is installed.

    Raises UnknownNameError for another name, and EngineError if the module is not installed (the
    fix says how to get it on this machine) or does not start.
    """
    if name is not None and name not in MODULES:
        raise UnknownNameError("TensorRT module", name, MODULES)
    for candidate in (name,) if name else MODULES:
        if (trt := _loaded(candidate)) is not None:
            return trt
    raise EngineError(
        f"expected the Python module {name or ' or '.join(MODULES)}, which is not installed here",
        fix="pip install tensorrt" if name == "tensorrt" and not _on_board() else how_to_get(),
    )


def _on_board() -> bool:
    return platform.machine() == "aarch64"


def how_to_get(machine: str = "") -> str:
    """Return how TensorRT comes to a ``machine`` (``uname -m``; default: the one at hand).

    JetPack carries it as Debian packages (NVIDIA, "JetPack SDK: package management"); desktop cards
    have the package ``tensorrt-rtx`` on PyPI.
    """
    if (machine or platform.machine()) == "aarch64":
        return (
            f"on a Jetson: {install.APT_PACKAGE}, and use JetPack's own Python "
            "(python3 -m venv --system-site-packages); see da3 doctor"
        )
    return f"{install.RTX_PACKAGE}; TensorRT itself: pip install tensorrt"


def examine(module: Any) -> Features:
    """Return what ``module`` offers, by the names that it has."""
    flags, creation = _names(module, "BuilderFlag"), _names(module, "NetworkDefinitionCreationFlag")
    config, network = _names(module, "IBuilderConfig"), _names(module, "INetworkDefinition")
    without_device = "set_compute_capability" in config
    return Features(
        typing=_typing(flags, creation),
        explicit_batch="EXPLICIT_BATCH" in creation,
        pools="set_memory_pool_limit" in config,
        fp16="FP16" in flags,
        int8="INT8" in flags,
        constraints="OBEY_PRECISION_CONSTRAINTS" in flags
        and "precision" in _names(module, "ILayer"),
        tf32="TF32" in flags,
        level="builder_optimization_level" in config,
        refit_individual="REFIT_INDIVIDUAL" in flags and "mark_weights_refittable" in network,
        # A builder that needs no device measures nothing: it accepts a cache and leaves it empty.
        timing_cache="create_timing_cache" in config and not without_device,
        error_nodes={"node_name", "node_operator"} <= _names(module, "ParserError"),
        native_norm="NATIVE_INSTANCENORM" in _names(module, "OnnxParserFlag"),
        without_device=without_device,
        named_io="set_tensor_address" in _names(module, "IExecutionContext"),
    )


@cache
def _loaded(name: str) -> TensorRT | None:
    """Import ``name``; None where there is no such module."""
    try:
        module = import_module(name)
    except ModuleNotFoundError as err:
        # Another name means that the module is there, and that something it imports is not.
        if err.name == name:
            return None
        raise _broken(name, err) from err
    except (ImportError, OSError) as err:
        raise _broken(name, err) from err
    if not hasattr(module, "Builder"):
        raise _broken(name, "it has no Builder")
    journal = Journal()
    return TensorRT(
        module=module,
        name=name,
        build=str(module.__version__),
        features=examine(module),
        logger=make_logger(module, journal),
        journal=journal,
    )


def _broken(name: str, reason: object) -> EngineError:
    return EngineError(
        f"expected the module {name} to start, got: {reason}",
        fix=f"install it anew with its libraries; {how_to_get()}",
    )


def _typing(flags: frozenset[str], creation: frozenset[str]) -> Typing:
    if "STRONGLY_TYPED" not in creation:
        return "absent"
    # Without precision flags, only the graph can say the precision.
    return "flag" if "FP16" in flags else "implied"


def _names(module: Any, kind: str) -> frozenset[str]:
    """Names of a class of the module; none where it lacks the class."""
    return frozenset(dir(getattr(module, kind, object)))
