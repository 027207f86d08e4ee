"""Build the models that a check runs: shipped graphs, and the staged reference.

Rules of this file: sessions only; weights come from one folder, slots at run time or, for static
graphs, as constants. ``staged`` and tapped twins are linked anew from the halves and so need the
packages onnx and onnx-ir; the shipped graphs need onnxruntime alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from toolchain.core.errors import GraphError
from toolchain.device.runtime.ort.backend import Linked, Runnable
from toolchain.device.runtime.ort.session import Session, fits
from toolchain.device.runtime.ort.staged import Segments, StagedRunner
from toolchain.export.check.parity import BATCHES, Subject

if TYPE_CHECKING:
    import onnx_ir as ir

    from toolchain.export.graph.link import Linking
    from toolchain.export.graph.split import Split

Builder = Callable[[], Runnable]
Slots = Mapping[str, npt.NDArray[Any]]


def shipped(
    name: str,
    graph: bytes,
    folder: Path,
    slots: Slots,
    *,
    tapped: Builder | None = None,
) -> Subject:
    """Return a linked graph as a subject; ``name`` is its stem: ``swap-if``, ``static-rows``."""
    static = name.startswith("static")
    session = Session(graph, folder=folder, constants=slots if static else None, what=name)
    _check_interface(name, session, slots, static=static)
    # A batch-1 graph is looped whatever the batch: one size tells all.
    batches = BATCHES[:1] if name.endswith("-if") else BATCHES
    return Subject(name, Linked(session), tapped, takes_slots=not static, batches=batches)


def _check_interface(name: str, session: Session, slots: Slots, *, static: bool) -> None:
    """Hold a graph to its name: batch, inputs and outputs. Raises GraphError."""
    wanted = {} if static else {slot: tuple(array.shape) for slot, array in slots.items()}
    found = {k: v for k, v in session.inputs.items() if k != "image"}
    odd = sorted(k for k in wanted.keys() | found.keys() if not fits(found.get(k), wanted.get(k)))
    if odd:
        raise GraphError(f"{name}: expected image and the slots as inputs, they differ in {odd}")
    batch = session.inputs.get("image", (None,))[0]
    if name.endswith("-if") != (batch == 1):
        raise GraphError(f"{name}: expected the batch of its form, got {batch!r}")
    if not {"logits"} <= set(session.outputs) <= {"logits", "gates"}:
        raise GraphError(f"{name}: expected the outputs logits and gates, got {session.outputs}")


def tapped(halves: Split, linking: Linking, folder: Path, slots: Slots) -> Builder:
    """Return a builder of the twin that also gives every block's output."""

    def build() -> Runnable:
        from dataclasses import replace

        from toolchain.export.graph.link import link
        from toolchain.export.graph.store import to_bytes

        graph = to_bytes(link(halves, replace(linking, taps=True)))
        constants = slots if linking.flavour == "static" else None
        return Linked(Session(graph, folder=folder, constants=constants, what=linking.name))

    return build


def staged(halves: Split, folder: Path) -> Subject:
    """Return the staged flavour as a subject."""
    from toolchain.export.graph.stage import stage
    from toolchain.export.graph.store import to_bytes

    def session(model: ir.Model) -> Session:
        return Session(to_bytes(model), folder=folder, what=model.graph.name or "")

    segments = stage(halves)
    sites = [
        Segments(
            site.cut.correction,
            site.cut.gate if site.closed is not None else None,
            site.cut.result,
            session(site.side),
            session(site.opened),
            None if site.closed is None else session(site.closed),
        )
        for site in segments.stages
    ]
    runner = StagedRunner(sites, session(segments.tail))
    return Subject("staged", runner, lambda: runner)
