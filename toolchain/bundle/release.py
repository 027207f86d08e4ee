"""One release of a domain, as its verified bundle gives it: everything that running it needs.

Rules of this file: values only. A release comes from :mod:`toolchain.bundle`, which has verified
archive, manifest, digests and slots, or from an installed domain, which was verified before. It
holds its own copy of the slots and keeps nothing else of the bundle alive than what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt

from toolchain import bundle
from toolchain.bundle import Adaptor, BackboneRef, Bundle, Note, Notes
from toolchain.bundle.golden import Golden, golden_of
from toolchain.bundle.linkage import LINKED_ROLES, Linkage, linkage_of
from toolchain.bundle.slots import slot_arrays
from toolchain.core.errors import BundleError, Fault
from toolchain.core.fields import read_section
from toolchain.pictures.preprocess import Preprocessing

Slots = Mapping[str, npt.NDArray[Any]]


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


@dataclass(frozen=True, slots=True)
class Release:
    """A domain ready to be put on a session.

    ``digest``: of the bundle's manifest. ``slots`` are read-only arrays. ``gates``: gated blocks
    in the order of the graph's output ``gates``; ``fixed``: those among them that a static graph
    has resolved, and how. ``options``: those of its adaptors that the shapes of slots need not
    show, such as the pool ratio; empty without adaptors. ``golden`` reads the golden data when a
    self-test asks for them. ``patch``: what it has in place of tensors of the backbone.
    """

    name: str
    version: str
    digest: str
    backbone: BackboneRef
    classes: tuple[str, ...]
    preprocess: Preprocessing
    gates: tuple[str, ...]
    fixed: Mapping[str, bool]
    options: Notes
    slots: Slots
    graphs: Mapping[str, Graph]
    tolerance: float
    time_limit_s: float
    golden: Callable[[], Golden]
    # Digest of the linked graph that its slots were seen to fit when it was installed.
    fits_graph: str = ""
    patch: PatchFile | None = None

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

    @property
    def slots_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.slots.values())


def read_release(held: Bundle) -> Release:
    """Return the release in a verified bundle. Raises BundleError where it cannot be run."""
    manifest = held.manifest
    (slots_name,) = held.names("slots")
    slots = slot_arrays(held.blob(slots_name))
    return Release(
        manifest.domain,
        manifest.version,
        held.manifest_digest,
        manifest.backbone,
        manifest.classes,
        preprocessing(held),
        tuple(b.name for b in manifest.gates.blocks if f"{b.name}.gate.bias" in slots),
        {b.name: b.rate == 1 for b in manifest.gates.blocks if b.rate in (0, 1)},
        shared_options(manifest.adaptor),
        slots,
        _graphs(held),
        manifest.selftest.tolerance_relative,
        manifest.selftest.time_limit_s,
        lambda: golden_of(held),
        patch=patch_of(held),
    )


def patch_of(held: Bundle) -> PatchFile | None:
    """Return the patch that a verified bundle carries, if any."""
    if held.manifest.patch is None:
        return None
    (name,) = held.names("patch")
    return PatchFile(held.manifest.patch, lambda: held.blob(name))


def preprocessing(held: Bundle) -> Preprocessing:
    """Return a bundle's preprocessing as the value that :mod:`toolchain.pictures` takes."""
    plain = asdict(held.manifest.preprocess)
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    faults: list[Fault] = []
    found = read_section(Preprocessing, "preprocess", given, faults)
    if found is None:
        raise BundleError(
            f"the manifest's preprocessing cannot be meant: {'; '.join(map(str, faults))}",
            fix="export the domain again",
        )
    return found


def shared_options(adaptor: Adaptor) -> dict[str, Note]:
    """Return the options that two domains must share to run on one graph."""
    if not any(".adaptor." in slot.name for slot in adaptor.slots):
        return {}
    # Where adaptors stand shows in the slots, and what else was trained in the patch.
    apart = {"placement", "update_kib", "last"}
    if adaptor.method != "da2":
        apart.add("attention")
    return {name: value for name, value in adaptor.options.items() if name not in apart}


def _graphs(held: Bundle) -> dict[str, Graph]:
    linked = [e for e in held.manifest.files if e.role in LINKED_ROLES]
    return {
        (stem := entry.name.removesuffix(".onnx")): Graph(stem, entry.digest, _reader(held, entry))
        for entry in linked
    }


def _reader(held: Bundle, entry: bundle.FileEntry) -> Callable[[], bytes]:
    return lambda: held.blob(entry.name)
