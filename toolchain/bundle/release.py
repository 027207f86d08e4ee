"""One release of a domain, as its verified bundle gives it: everything that running it needs.

Rules of this file: values only. A release comes from a bundle, whose archive, manifest, digests and
slots were verified, or from an installed domain, which was verified before. A field of the manifest
that a request needs is declared in :class:`toolchain.bundle.manifest.ReleaseInfo` and copied by its
name: releases, installed domains and loaded domains share it. A release holds its own copy of the
slots; the rest of the bundle stays alive only for as long as somebody can still ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolchain import bundle
from toolchain.bundle import Adaptation, BackboneRef, Bundle, Note
from toolchain.bundle.golden import Golden, golden_of
from toolchain.bundle.linkage import LINKED_ROLES, STATIC_IF, Linkage, linkage_of
from toolchain.bundle.manifest import CARRIED, ReleaseInfo
from toolchain.bundle.resolved import resolved_gates
from toolchain.bundle.slots import Slots, slot_arrays
from toolchain.core.errors import BundleError


@dataclass(frozen=True, slots=True)
class Graph:
    """A linked graph that a release brings: ``name`` is its stem (``swap-if``)."""

    name: str
    digest: str
    read: Callable[[], bytes]

    @property
    def linkage(self) -> Linkage:
        """What the graph is. Raises BundleError for one that this version does not know."""
        if (linkage := linkage_of(self.name)) is None:
            raise BundleError(
                f"{self.name}.onnx: expected a linked graph that this version knows",
                fix="run the domain with the toolchain that exported it",
            )
        return linkage


@dataclass(frozen=True, slots=True)
class PatchFile:
    """A domain's own tensors of the backbone; ``read`` returns the bytes of the verified file."""

    about: bundle.Patch
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(ReleaseInfo):
    """A domain ready to be put on a session.

    ``slots`` are read-only arrays. ``golden`` reads the golden data when a self-test asks for them.
    ``fits_graph``: digest of the linked graph that the slots were seen to fit when the domain was
    installed. ``patch``: what it has in place of tensors of the backbone.
    """

    backbone: BackboneRef
    slots: Slots
    graphs: Mapping[str, Graph]
    golden: Callable[[], Golden]
    fits_graph: str = ""
    patch: PatchFile | None = None

    @property
    def digest(self) -> str:
        """Digest of the bundle's manifest."""
        return self.release

    @property
    def weights(self) -> str:
        """Digest of the patched weights that it runs on; empty for the backbone's own."""
        return "" if self.patch is None else self.patch.about.digest

    def graph(self, name: str) -> Graph:
        """Return the linked graph ``name``. Raises BundleError if the bundle has none."""
        if name not in self.graphs:
            raise BundleError(
                f"{self.name}: expected the linked graph {name}, got {sorted(self.graphs)}",
                fix="export the domain again",
            )
        return self.graphs[name]

    def resolved(self) -> dict[str, bool]:
        """Return the gates that the static graph has resolved, and how.

        Raises BundleError for a graph that cannot be read, or that is not there.
        """
        graph = self.graph(STATIC_IF.stem)
        return resolved_gates(graph.read(), self.gates, graph.name)

    @property
    def slots_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.slots.values())


def read_release(opened: Bundle) -> Release:
    """Return the release in a verified bundle. Raises BundleError where it cannot be run."""
    manifest = opened.manifest
    (slots_name,) = opened.names("slots")
    slots = slot_arrays(opened.blob(slots_name))
    blocks = manifest.gates.blocks
    return Release(
        **{name: getattr(manifest, name) for name in CARRIED},
        name=manifest.domain,
        release=opened.manifest_digest,
        gates=tuple(block.name for block in blocks if f"{block.name}.gate.bias" in slots),
        options=shared_options(manifest.adaptor),
        tolerance=manifest.selftest.tolerance_relative,
        time_limit_s=manifest.selftest.time_limit_s,
        backbone=manifest.backbone,
        slots=slots,
        graphs=_graphs(opened),
        golden=lambda: golden_of(opened),
        patch=patch_of(opened),
    )


def patch_of(opened: Bundle) -> PatchFile | None:
    """Return the patch that a verified bundle carries, if any."""
    if opened.manifest.patch is None:
        return None
    (name,) = opened.names("patch")
    return PatchFile(opened.manifest.patch, lambda: opened.blob(name))


def shared_options(adaptor: Adaptation) -> dict[str, Note]:
    """Return the options that two domains must share to run on one graph."""
    if not any(".adaptor." in slot.name for slot in adaptor.slots):
        return {}
    # Where adaptors stand shows in the slots, and what else was trained in the patch.
    apart = {"placement", "update_kib", "last"}
    # Only da2's adaptors compute an attention.
    if adaptor.method != "da2":
        apart.add("attention")
    return {name: value for name, value in adaptor.options.items() if name not in apart}


def _graphs(opened: Bundle) -> dict[str, Graph]:
    graphs = [
        Graph(entry.name.removesuffix(".onnx"), entry.digest, _reader(opened, entry.name))
        for entry in opened.manifest.files
        if entry.role in LINKED_ROLES
    ]
    return {graph.name: graph for graph in graphs}


def _reader(opened: Bundle, name: str) -> Callable[[], bytes]:
    return lambda: opened.blob(name)
