"""Build the models that a check runs: shipped graphs, and the staged reference.

Rules of this file: sessions only; weights come from one folder, slots at run time or, for static
graphs, as constants. ``staged`` and tapped twins are linked anew from the halves and so need the
packages onnx and onnx-ir; the shipped graphs need onnxruntime alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.bundle import Bundle
from toolchain.bundle.linkage import LINKAGES, LINKED_ROLES, STAGED, Linkage
from toolchain.bundle.slots import Slots
from toolchain.core.errors import BundleError, GraphError
from toolchain.device.runtime.backend import Runnable, fits
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.ort.staged import Segments, StagedRunner
from toolchain.export.check.parity import BATCHES, Candidate

if TYPE_CHECKING:
    import onnx_ir as ir

    from toolchain.export.graph.halves import Halves

_EXPORT_AGAIN = "export the domain again"

Builder = Callable[[], Runnable]


def shipped(
    linkage: Linkage,
    graph: bytes,
    folder: Path,
    slots: Slots,
    *,
    tapped: Builder | None = None,
) -> Candidate:
    """Return a linked graph as a candidate. Raises GraphError where it is not of ``linkage``."""
    name, folds = linkage.stem, linkage.folds_domain
    session = Session(graph, folder=folder, constants=slots if folds else None, what=name)
    _check_interface(linkage, session, slots)
    # A batch-1 graph is looped whatever the batch: one size tells all.
    batches = BATCHES[:1] if linkage.takes_one_picture else BATCHES
    return Candidate(name, LinkedModel(session), tapped, takes_slots=not folds, batches=batches)


def _check_interface(linkage: Linkage, session: Session, slots: Slots) -> None:
    """Hold a graph to its name: batch, inputs and outputs. Raises GraphError."""
    name = linkage.stem
    shapes = {slot: tuple(array.shape) for slot, array in slots.items()}
    expected = {} if linkage.folds_domain else shapes
    inputs = {k: v for k, v in session.inputs.items() if k != "image"}
    odd = sorted(
        k for k in expected.keys() | inputs.keys() if not fits(inputs.get(k), expected.get(k))
    )
    if odd:
        raise GraphError(f"{name}: expected image and the slots as inputs, they differ in {odd}")
    batch = session.inputs.get("image", (None,))[0]
    if linkage.takes_one_picture != (batch == 1):
        raise GraphError(f"{name}: expected the batch of its form, got {batch!r}")
    if not {"logits"} <= set(session.outputs) <= {"logits", "gates"}:
        raise GraphError(f"{name}: expected the outputs logits and gates, got {session.outputs}")


def linkages_of(opened: Bundle) -> tuple[Linkage, ...]:
    """Return what linked graphs a bundle lists, in the order of :data:`LINKAGES`.

    Raises BundleError for none at all, and for a graph under a name or role that this version does
    not know: nobody could say how to run it, and leaving it out would pass it unseen.
    """
    listed = {(role, name) for role in LINKED_ROLES for name in opened.names(role)}
    if not listed:
        raise BundleError("expected at least one linked graph, got none", fix=_EXPORT_AGAIN)
    known = {(one.role, one.file): one for one in LINKAGES if not one.is_segmented}
    if unknown := sorted(listed - known.keys()):
        raise BundleError(
            f"expected linked graphs among {sorted(known)} (role, name), got {unknown}",
            fix="use the toolchain that wrote the bundle "
            f"({opened.manifest.provenance.get('toolchain')}), or export the domain again",
        )
    return tuple(one for place, one in known.items() if place in listed)


def tapped(
    halves: Halves, linkage: Linkage, rates: Mapping[str, float], folder: Path, slots: Slots
) -> Builder:
    """Return a builder of the same graph with every block's output as an output of its own."""

    def build() -> Runnable:
        from toolchain.export.graph.link import link
        from toolchain.export.graph.store import to_bytes

        graph = to_bytes(link(halves, linkage, rates=rates, taps=True))
        constants = slots if linkage.folds_domain else None
        return LinkedModel(Session(graph, folder=folder, constants=constants, what=linkage.stem))

    return build


def staged(halves: Halves, folder: Path) -> Candidate:
    """Return the staged flavour as a candidate."""
    from toolchain.export.graph.stage import stage
    from toolchain.export.graph.store import to_bytes

    def session(model: ir.Model) -> Session:
        return Session(to_bytes(model), folder=folder, what=model.graph.name or "")

    segments = stage(halves)
    sites = [
        Segments(
            site.cut.gate if site.closed is not None else None,
            site.cut.result,
            session(site.side),
            session(site.opened),
            None if site.closed is None else session(site.closed),
        )
        for site in segments.sites
    ]
    runner = StagedRunner(sites, session(segments.tail))
    # The segments give every block's result in any case, so the runner is its own tapped twin.
    return Candidate(STAGED.stem, runner, lambda: runner)
