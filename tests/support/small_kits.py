"""A small kit with made-up contents: what the tests of the format and of the script start from."""

from __future__ import annotations

from pathlib import Path

from toolchain.bundle.backbone import BackboneBlock, BackboneFile, BackboneInput, BackboneManifest
from toolchain.bundle.backbone import graph_digest as digest_of
from toolchain.core.digest import sha256
from toolchain.device.engine.kit import (
    ClassProfile,
    Kit,
    KitFlavour,
    KitManifest,
    KitModel,
    KitSlot,
    write_kit,
)

GRAPH, WEIGHTS = b"graph", b"weights"
FILES = {"swap.onnx": b"a model", "block00.side.onnx": b"a side", "tail.onnx": b"a tail"}
SLOTS = (
    KitSlot("block00.gate.bias", (1,), "float32"),
    KitSlot("block00.gate.weight", (4, 1), "float32"),
    KitSlot("head.bias", (None,), "float32"),
    KitSlot("head.weight", (None, 4), "float32"),
)
SWAP = KitFlavour("swap", None, None, (KitModel("whole", None, "swap.onnx", 1, 2, ("w0", "w1")),))
STAGED = KitFlavour(
    "staged",
    None,
    None,
    (
        KitModel("side", "block00", "block00.side.onnx", 0, 0),
        KitModel("tail", None, "tail.onnx", 0, 0),
    ),
)


def backbone() -> BackboneManifest:
    files = (
        BackboneFile("backbone.onnx", sha256(GRAPH), len(GRAPH)),
        BackboneFile("weights.safetensors", sha256(WEIGHTS), len(WEIGHTS)),
    )
    return BackboneManifest(
        "da3.backbone/1",
        "toy",
        sha256(b"trained"),
        digest_of(files[0].digest, files[1].digest),
        BackboneInput(12, 3),
        18,
        10,
        files,
        (
            BackboneBlock("block00", (4, 12, 12), (4, 12, 12), 600, gateable=True),
            BackboneBlock("block01", (4, 12, 12), (8, 6, 6), 400, gateable=False),
        ),
        (),
        "Apache-2.0",
        {},
    )


def manifest(target: str = "xavier-nx-jp5.1", precision: str = "fp32") -> KitManifest:
    return KitManifest(
        "da3.kit/1",
        target,
        precision,
        17,
        sha256(b"swap-if"),
        ("block00",),
        {"pool": 2},
        SLOTS,
        ClassProfile(1, 16, 64),
        (SWAP, STAGED),
        (),
        {"toolchain": "0.1.0"},
    )


def write(folder: Path, about: KitManifest | None = None, **files: bytes) -> Kit:
    folder.mkdir(exist_ok=True)
    return write_kit(folder, about or manifest(), backbone(), {**FILES, **files})
