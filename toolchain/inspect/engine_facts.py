"""What kits and engines say of themselves.

Rules of this file: those of :mod:`toolchain.inspect.file_facts`. Every listed file is hashed. It
needs no TensorRT, so it does not say whether an engine runs on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.bundle import BackboneManifest
from toolchain.device.engine.cache import EngineManifest, open_engine
from toolchain.device.engine.kit import KitManifest, open_kit


@dataclass(frozen=True, slots=True)
class KitFacts:
    """A kit, every file verified; ``digest`` of its manifest, ``size_bytes`` of its files."""

    digest: str
    size_bytes: int
    manifest: KitManifest
    backbone: BackboneManifest


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """An engine, every file verified; ``size_bytes`` of its files."""

    size_bytes: int
    manifest: EngineManifest
    kit: KitManifest


def read_kit(folder: Path) -> KitFacts:
    """Return a kit; raises as :func:`toolchain.device.engine.kit.open_kit` and ``Kit.read``."""
    kit = open_kit(folder)
    size_bytes = sum(len(kit.read(entry.name)) for entry in kit.manifest.files)
    return KitFacts(
        digest=kit.digest, size_bytes=size_bytes, manifest=kit.manifest, backbone=kit.backbone
    )


def read_engine(folder: Path) -> EngineFacts:
    """Return an engine; raises as :func:`toolchain.device.engine.cache.open_engine`."""
    engine = open_engine(folder)
    size_bytes = sum(entry.size for entry in engine.manifest.files)
    return EngineFacts(size_bytes, engine.manifest, engine.kit)
