"""One small, complete bundle and backbone, from which the tests start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from tests.support.archives import read_archive
from toolchain.bundle import (
    Adaptation,
    BackboneBlock,
    BackboneInput,
    BackboneManifest,
    BackboneRef,
    GateBlock,
    Gates,
    GateStates,
    Manifest,
    Payload,
    Preprocessing,
    Requires,
    Selftest,
    Tap,
    read_bundle,
)
from toolchain.bundle.archive import write_archive
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256

ZERO = "sha256:" + "0" * 64
TAPS = (Tap("block01.input", (16, 32, 32), "float32"), Tap("pool.output", (64,), "float32"))

MANIFEST = Manifest(
    schema="da3.bundle/1",
    min_agent="0.1",
    created="1970-01-01T00:00:00Z",
    domain="cars",
    version="1.0",
    release_counter=1,
    files=(),
    backbone=BackboneRef("resnet20", sha256(b"weights"), sha256(b"graph"), TAPS),
    adaptor=Adaptation("da3", {"pool": 4, "norm": "none", "bias": True, "lr": 0.1, "x": None}, ()),
    preprocess=Preprocessing(
        32, 36, "center", "bilinear", "RGB", (0.5, 0.5, 0.25), (1.0, 0.5, 0.25)
    ),
    classes=("estate car", "Käfer", "'quoted'"),
    gates=Gates(
        (GateBlock("block01", True, 1000, 0.5), GateBlock("block02", False, 2000, None)), 0.8
    ),
    plans=(),
    requires=Requires(None, 12.5, "15W"),
    selftest=Selftest(
        "golden", "golden", 2, 1e-4, {"block01": GateStates(1, 1, False)}, time_limit_s=10.0
    ),
    parity={"swap-if.max_abs": 1e-6, "swap-if.top1_mismatches": 0},
    metrics={"accuracy": 0.93},
    fallback=None,
    provenance={"toolchain": "0.1.0", "torch": "2.13.0"},
    licence="Apache-2.0",
)
SLOTS: dict[str, npt.NDArray[Any]] = {
    "block01.adaptor.reduce.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "block01.gate.bias": np.zeros(1, np.float32),
    "head.weight": np.ones((3, 2), np.float16),
}
PAYLOADS = (
    Payload("recipe", "recipe.yaml", b"domain: cars\n"),
    Payload("domain", "domain.onnx", b"not looked into by the bundle room"),
    Payload("slots", "slots.safetensors", save(SLOTS)),
    Payload("golden", "golden.safetensors", save({"pixels": np.zeros((1, 2, 2, 3), np.uint8)})),
)
BACKBONE = BackboneManifest(
    schema="da3.backbone/1",
    name="resnet20",
    weights_digest=sha256(b"weights"),
    graph_digest=ZERO,
    input=BackboneInput(32, 3),
    opset=21,
    ir_version=10,
    files=(),
    blocks=(BackboneBlock("block01", (16, 32, 32), (16, 32, 32), 1000, True),),
    taps=TAPS,
    licence="Apache-2.0",
    provenance={"toolchain": "0.1.0"},
)


def resealed(good: bytes, manifest: bytes, changed: dict[str, bytes] | None = None) -> bytes:
    """Return the bundle ``good`` with another manifest and other files, all digests in order.

    ``changed`` maps the digest of a blob to the bytes that take its place.
    """
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    del blobs[archive.manifest_digest]
    for digest, data in (changed or {}).items():
        del blobs[digest]
        blobs[sha256(data)] = data
    blobs[sha256(manifest)] = manifest
    return write_archive(blobs, sha256(manifest))


def edited(good: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the bundle ``good`` after ``edit`` has changed its manifest in place."""
    document = json.loads(read_bundle(good).manifest.to_json())
    edit(document)
    return resealed(good, canonical_json(document))


def with_slots(good: bytes, slots: bytes) -> bytes:
    """Return the bundle ``good`` with another slots file, listed rightly; the table stays."""
    manifest = read_bundle(good).manifest
    (old,) = (entry for entry in manifest.files if entry.role == "slots")
    new = replace(old, digest=sha256(slots), size=len(slots))
    files = tuple(new if entry == old else entry for entry in manifest.files)
    return resealed(good, replace(manifest, files=files).to_json(), {old.digest: slots})
