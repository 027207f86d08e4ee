"""Bundles: the ``.da3b`` format of a domain and the backbone artefact that it fits.

Rules of this room: standard library, numpy and safetensors, never a framework, so that a device
reads bundles without one. Values come from bytes (``manifest``, ``archive``, ``slots``, ``patch``,
``golden``). Only ``package`` and ``backbone`` touch files. Nothing is signed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily
from toolchain.core.words import Note, Notes

if TYPE_CHECKING:
    from toolchain.bundle.backbone import (
        BackboneArtefact,
        BackboneBlock,
        BackboneFile,
        BackboneInput,
        BackboneManifest,
        artefact_name,
        find_backbone,
        graph_digest,
        match,
        open_backbone,
        write_backbone,
    )
    from toolchain.bundle.manifest import (
        Adaptation,
        BackboneRef,
        FileEntry,
        GateBlock,
        Gates,
        GateStates,
        Manifest,
        Patch,
        PrecisionCost,
        Requires,
        Selftest,
        Slot,
        Tap,
    )
    from toolchain.bundle.package import (
        Bundle,
        Payload,
        Report,
        created_now,
        open_bundle,
        pack,
        read_bundle,
        unpack,
        verify,
    )
    from toolchain.bundle.patch import Patched, apply_patch, make_patch
    from toolchain.bundle.slots import check_slots, slot_table
    from toolchain.pictures.preprocess import Preprocessing

__all__ = [
    "Adaptation",
    "BackboneArtefact",
    "BackboneBlock",
    "BackboneFile",
    "BackboneInput",
    "BackboneManifest",
    "BackboneRef",
    "Bundle",
    "FileEntry",
    "GateBlock",
    "GateStates",
    "Gates",
    "Manifest",
    "Note",
    "Notes",
    "Patch",
    "Patched",
    "Payload",
    "PrecisionCost",
    "Preprocessing",
    "Report",
    "Requires",
    "Selftest",
    "Slot",
    "Tap",
    "apply_patch",
    "artefact_name",
    "check_slots",
    "created_now",
    "find_backbone",
    "graph_digest",
    "make_patch",
    "match",
    "open_backbone",
    "open_bundle",
    "pack",
    "read_bundle",
    "slot_table",
    "unpack",
    "verify",
    "write_backbone",
]

__getattr__ = lazily(
    __name__,
    {
        "backbone": (
            "BackboneArtefact",
            "BackboneBlock",
            "BackboneFile",
            "BackboneInput",
            "BackboneManifest",
            "artefact_name",
            "find_backbone",
            "graph_digest",
            "match",
            "open_backbone",
            "write_backbone",
        ),
        "manifest": (
            "Adaptation",
            "BackboneRef",
            "FileEntry",
            "GateBlock",
            "Gates",
            "GateStates",
            "Manifest",
            "Patch",
            "PrecisionCost",
            "Requires",
            "Selftest",
            "Slot",
            "Tap",
            "Note",
            "Notes",
            "Preprocessing",
        ),
        "package": (
            "Bundle",
            "Payload",
            "Report",
            "created_now",
            "open_bundle",
            "pack",
            "read_bundle",
            "unpack",
            "verify",
        ),
        "patch": (
            "Patched",
            "apply_patch",
            "make_patch",
        ),
        "slots": (
            "check_slots",
            "slot_table",
        ),
    },
)
