"""The key of an engine: everything that it depends on.

Rules of this file: values; it asks no device and opens no file. One engine may replace another only
if every part of their keys is equal. A difference is named, with both values.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from toolchain.bundle.linkage import FLAVOURS
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.fields import Nullable, Section, choice, key, printable
from toolchain.core.words import DIGEST, NATURAL, PRECISIONS, VERSION, WORD
from toolchain.device.boards.cuda import Gpu
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import Kit

Part = str | int | None
_LINE = printable(200)


@dataclass(frozen=True, slots=True)
class EngineKey(Section):
    """Everything that an engine depends on.

    TensorRT ties a plan to its own build and to the device (TensorRT developer guide, "Engine
    portability"); tactics are chosen by timing, so power mode and memory count. ``memory_mib`` is
    the device's; ``l4t`` and ``power`` are null where the machine has none; ``options`` are builder
    flags and settings, ``shapes`` the class profile; the last five say what was built.
    """

    # The order of the fields counts: the digest is taken over it, and ``device`` ends with
    # ``power``.
    module: str = key(WORD)
    tensorrt: str = key(VERSION)
    gpu: str = key(_LINE)
    sm: str = key(VERSION)
    multiprocessors: int = key(NATURAL)
    memory_mib: int = key(NATURAL)
    cuda: str = key(VERSION)
    l4t: str | None = key(Nullable(_LINE))
    power: str | None = key(Nullable(_LINE))
    options: str = key(_LINE)
    precision: str = key(choice(*PRECISIONS))
    shapes: str = key(_LINE)
    kit: str = key(DIGEST)
    weights: str = key(DIGEST)
    graph: str = key(DIGEST)
    flavour: str = key(choice(*FLAVOURS))

    def parts(self) -> tuple[tuple[str, Part], ...]:
        """Return every part in its order, by name."""
        return tuple((item.name, getattr(self, item.name)) for item in fields(self))

    def device(self) -> tuple[tuple[str, Part], ...]:
        """Return the parts that timings depend on: module and machine."""
        named = self.parts()
        return named[: 1 + [name for name, _ in named].index("power")]

    def digest(self) -> str:
        """Return the sha256 over the RFC 8785 JSON of ``[[part, value], ...]``."""
        return sha256(canonical_json([list(part) for part in self.parts()]))


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """One part of a key that differs."""

    part: str
    expected: Part
    got: Part

    def __str__(self) -> str:
        return f"{self.part}: expected {self.expected}, got {self.got}"


def key_of(
    trt: TensorRT,
    gpu: Gpu,
    kit: Kit,
    *,
    flavour: str,
    options: str,
    l4t: str | None = None,
    power: str | None = None,
) -> EngineKey:
    """Return the key of an engine of ``kit``, built here; ``options`` as the builder's caller says.

    ``l4t``: the board's Linux (``R36.4.3``); ``power``: its power mode as nvpmodel names it.
    """
    low, best, high = (getattr(kit.manifest.classes, name) for name in ("low", "best", "high"))
    return EngineKey(
        module=trt.name,
        tensorrt=trt.build,
        gpu=gpu.name,
        sm=gpu.sm,
        multiprocessors=gpu.multiprocessors,
        memory_mib=gpu.memory_bytes >> 20,
        cuda=gpu.driver,
        l4t=l4t,
        power=power,
        options=options,
        precision=kit.manifest.precision,
        shapes=f"classes {low}/{best}/{high}",
        kit=kit.digest,
        weights=kit.backbone.weights_digest,
        graph=kit.manifest.graph,
        flavour=flavour,
    )


def key_differences(expected: EngineKey, got: EngineKey) -> tuple[KeyDifference, ...]:
    """Return the parts that differ, in the key's order."""
    pairs = zip(expected.parts(), got.parts(), strict=True)
    return tuple(
        KeyDifference(name, want, have) for (name, want), (_, have) in pairs if want != have
    )
