"""Bundles and backbones with one thing changed, all digests put right again.

What is made here passes every check of bytes: only running it can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import load

from tests.support.exported import Exported
from toolchain import bundle
from toolchain.bundle import Manifest, Payload
from toolchain.export.graph import store
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE

Edit = Callable[[dict[str, np.ndarray[Any, Any]]], None]


def repacked(
    exported: Exported,
    folder: Path,
    files: Mapping[str, bytes | None] | None = None,
    change: Callable[[Manifest], Manifest] = lambda m: m,
    roles: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """The bundle with other files (None leaves one out) and manifest, beside its backbone.

    ``roles`` of files by name, for those that are new or shall have another role.
    """
    opened = bundle.open_bundle(exported.bundle)
    new = {entry.name: opened.blob(entry.name) for entry in opened.manifest.files}
    roles = {**{entry.name: entry.role for entry in opened.manifest.files}, **roles}
    new.update(files or {})  # type: ignore[arg-type]
    payloads = [Payload(roles[n], n, data) for n, data in new.items() if data is not None]
    path = folder / exported.bundle.name
    bundle.pack(path, change(opened.manifest), payloads, overwrite=True)
    beside = folder / exported.backbone.name
    if not beside.exists():
        beside.symlink_to(exported.backbone)
    return path


def with_slots(exported: Exported, folder: Path, edit: Edit) -> Path:
    """The bundle with its slots edited."""
    slots = load(bundle.open_bundle(exported.bundle).blob(SLOTS_FILE))
    slots = {name: array.copy() for name, array in slots.items()}
    edit(slots)
    return repacked(exported, folder, {SLOTS_FILE: store.pack_tensors(slots, SLOTS_FILE).data})


def with_weights(exported: Exported, folder: Path, edit: Edit) -> Path:
    """A bundle and a backbone whose weights are edited, each naming the other's digests."""
    artefact = bundle.open_backbone(exported.backbone)
    tensors = {n: a.copy() for n, a in load(artefact.weights_path.read_bytes()).items()}
    edit(tensors)
    data = store.pack_tensors(tensors, WEIGHTS_FILE).data
    graph = artefact.graph_path.read_bytes()
    written = bundle.write_backbone(folder, artefact.manifest, graph=graph, weights=data)
    digest = written.manifest.graph_digest
    return repacked(
        exported,
        folder,
        change=lambda m: replace(m, backbone=replace(m.backbone, graph_digest=digest)),
    )
