"""Link a bundle's graphs anew from its halves, to show that they are what the halves say.

Rules of this file: needs onnx and onnx-ir, no torch. A graph that does not come out byte for byte
was altered, or written by another version of the linker; both are told apart from a mere parity
failure because they are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from toolchain.bundle import BackboneArtefact, Bundle
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import BundleError
from toolchain.export.check import candidates
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, read_halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE


@dataclass(frozen=True, slots=True)
class Relinked:
    """The halves of a bundle and the graphs linked from them that equal the shipped ones."""

    halves: Halves
    linkages: tuple[Linkage, ...]
    rates: Mapping[str, float]

    @property
    def identical(self) -> tuple[str, ...]:
        """Names of the graphs that came out byte for byte: all of them."""
        return tuple(one.stem for one in self.linkages)

    def tapped(
        self, folder: Path, slots: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, candidates.Builder]:
        """Return builders of tapped twins by graph name."""
        return {
            one.stem: candidates.tapped(self.halves, one, self.rates, folder, slots)
            for one in self.linkages
        }


def relink(opened: Bundle, artefact: BackboneArtefact) -> Relinked:
    """Link every shipped graph anew. Raises BundleError naming one that differs."""
    halves = halves_of(opened, artefact)
    rates = {b.name: b.rate for b in opened.manifest.gates.blocks if b.rate is not None}
    linkages = candidates.linkages_of(opened)
    for one in linkages:
        if store.to_bytes(link(halves, one, rates=rates)) != opened.blob(one.file):
            raise BundleError(
                f"{one.file} is not what linking the bundle's halves gives",
                fix="export the domain again; or check it with the very toolchain that wrote it "
                f"({opened.manifest.provenance.get('toolchain')})",
            )
    return Relinked(halves, linkages, rates)


def halves_of(opened: Bundle, artefact: BackboneArtefact) -> Halves:
    """Return the split that a bundle and its backbone make."""
    backbone = store.read_graph(artefact.graph_path)
    domain = store.from_bytes(opened.blob(opened.names("domain")[0]), what="domain.onnx")
    store.load_tensors(domain, SLOTS_FILE, opened.blob(opened.names("slots")[0]))
    # The linker keeps references as they are: slots point into the file that the bundle carries.
    return read_halves(backbone, _referenced(domain, opened))


def _referenced(domain: Any, opened: Bundle) -> Any:
    """Point the checked tensors into the slots file again, so that linking writes references."""
    data = opened.blob(opened.names("slots")[0])
    return store.externalise(domain, store.PackedTensors(SLOTS_FILE, data, store.places(data)))
