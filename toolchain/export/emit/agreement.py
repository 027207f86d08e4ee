"""Whether every file of a kit answers as the graph whose accuracy was measured.

Rules of this file: it runs files as they will be written, with onnxruntime on the CPU, and changes
none. Accuracy is measured on one graph: linked, in the kit's precision, before the dialect, the
fixed batch, the segments and the names of boundaries. What these passes did shows here, for each
flavour, with all gates as the pictures have them, forced open and forced closed. A few pictures are
enough: a wrong operator is wrong on all. A domain that is folded in has no gates to force, so it is
asked pictures that open and close them. What a precision costs is not judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from toolchain.bundle.golden import FORCE, shifted
from toolchain.bundle.linkage import SWAP_IF
from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.core.errors import PrecisionError
from toolchain.core.words import Precision
from toolchain.device.engine.kit import KitFlavour
from toolchain.device.runtime.backend import Answer, Runnable
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.ort.staged import Segments, StagedRunner
from toolchain.export.emit import accuracy
from toolchain.export.emit.models import KitModels
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link

PICTURES, LOOKED_AT = 4, 64
TOLERANCE: Mapping[Precision, float] = MappingProxyType({"fp32": 1e-4, "fp16": 5e-3, "int8": 0.02})
"""Largest difference of a logit, of the logits' range. Where a value lies between two of a coarse
grid, another order of sums moves it by a step of the grid."""
_FIRST = slice(PICTURES)
_NEAR = 0.02  # of a gate's largest logit


def require_agreement(split: Halves, models: KitModels, slots: Slots, images: Floats) -> None:
    """Raise PrecisionError, naming the flavour, unless all files answer as the measured graph.

    ``split`` holds its tensors in memory; ``images`` float32 ``[N, C, H, W]``, normalised, of which
    the first :data:`PICTURES` are used; for a folded domain the first that bring each gate into
    each state, of :data:`LOOKED_AT`.
    """
    order = models.order
    typed = order.in_graph == order.precision
    # Where the builder's flags decide the precision, the files are float32.
    measured = models.emulated if typed else store.to_bytes(link(split, SWAP_IF))
    reference = accuracy.runnable(measured)
    sites = [cut.site for cut in split.cuts if cut.gate in split.gates]
    for flavour in models.flavours:
        folded = flavour.linkage.folds_domain
        shown = _showing(reference.run(images[:LOOKED_AT], slots).gates) if folded else _FIRST
        pictures = images[shown]
        if not len(pictures):
            continue
        for amount in (0.0,) if folded or not sites else (0.0, FORCE, -FORCE):
            values = shifted(slots, sites, np.full(len(sites), amount, np.float32))
            want = reference.run(pictures, values)
            got = _answers(flavour, models, split, values, pictures)
            if folded:
                want = replace(want, gates=want.gates[:, :0])
                got = replace(got, gates=got.gates[:, :0])
            cost = accuracy.measure(got, want)
            if not cost.error <= TOLERANCE[order.in_graph]:
                raise PrecisionError(
                    f"{order.title}: expected the models of {flavour.flavour!r} to answer as the "
                    f"graph that was measured, got an error of {cost.error:.2g} of the logits' "
                    f"range, at most {TOLERANCE[order.in_graph]:g}",
                    fix="take another flavour or precision (--flavour, --precision), and report it",
                )


def _showing(gates: Floats) -> list[int]:
    """Return the first pictures, and for each gate the first that opens and that closes it.

    Left out are pictures with a gate that a rounding could turn: nobody tells that of a folded one.
    """
    clear = np.flatnonzero((np.abs(gates) > _NEAR * np.abs(gates).max(axis=0)).all(axis=1))
    opened = gates[clear] >= 0
    rows = {*range(min(PICTURES, len(clear)))}
    for states in (opened, ~opened):
        rows |= {int(column.argmax()) for column in states.T if column.any()}
    return sorted(clear[sorted(rows)].tolist())


def _answers(
    flavour: KitFlavour, models: KitModels, split: Halves, slots: Slots, images: Floats
) -> Answer:
    runner = _runner(flavour, models, split)
    # A kit may have a batch of one.
    rows = [runner.run(image, slots) for image in np.split(images, len(images))]
    return Answer(
        logits=np.concatenate([row.logits for row in rows]),
        gates=np.concatenate([row.gates for row in rows]),
        taps={},
    )


def _runner(flavour: KitFlavour, models: KitModels, split: Halves) -> Runnable:
    if not flavour.linkage.is_segmented:
        (whole,) = flavour.models
        return accuracy.runnable(models.files[whole.file])
    sessions = {
        (item.role, item.site): Session(models.files[item.file], exact=True, what=item.file)
        for item in flavour.models
    }
    sites = [
        Segments(
            gate=cut.gate if ("closed", cut.site) in sessions else None,
            result=cut.result,
            side=sessions["side", cut.site],
            opened=sessions["opened", cut.site],
            closed=sessions.get(("closed", cut.site)),
        )
        for cut in split.cuts
        if ("side", cut.site) in sessions  # the others have no adaptor
    ]
    return StagedRunner(sites, sessions["tail", None])
