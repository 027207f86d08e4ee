"""Export a domain before it is trained, so that nobody trains for hours what cannot be packed.

Rules of this file: everything that an export does with a graph and a manifest is done with the
untrained domain, by the same functions: split, link, check the graphs, pack, read back. Values stay
out: parity, kits and the search for golden pictures need the trained ones. Nothing is left behind
but the split in the cache, which the export after the training finds there. The model stays as it
is.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolchain import bundle
from toolchain.bundle.golden import Golden
from toolchain.bundle.linkage import SHIPPED, STAGED
from toolchain.core.confusion import Confusion
from toolchain.core.errors import TrainingError
from toolchain.core.timing import Notify
from toolchain.export import manifests
from toolchain.export.check import parity
from toolchain.export.check.parity import Comparison, ParityReport
from toolchain.export.check.reference import ReferenceCases, observe, with_forced
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.split import split
from toolchain.export.linked import link_domain, payloads, write_graphs
from toolchain.recipe import Recipe
from toolchain.training.adapt import backbones
from toolchain.training.adapt import checkpoint as checkpoints
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.folded import slots_alone
from toolchain.training.data import DomainData
from toolchain.training.loop import models
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.memory.analytic import count
from toolchain.training.memory.fit import mib

LIBRARIES_BYTES = 144 << 20
"""What the exporter's and onnxruntime's code take, once in a process; most of it stays."""
_COPIES = 5  # of the weights: captured, packed, written, read by onnxruntime and by its optimiser
_MAPS = 5  # a net's own maps under way, those of a session, and what is compared
_PICTURES = 2  # as in ``graph.proof``


def need(model: AttachedModel) -> int:
    """Return the bytes that :func:`rehearse` takes beside the weights, before the first step.

    An upper estimate: what torch.export and onnxruntime hold, no rule of ours says. A test holds
    the process's peak to it. Raises TrainingError where the maps cannot be counted.
    """
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return LIBRARIES_BYTES + _COPIES * weights + _MAPS * count(model, _PICTURES).working


def need_line(model: AttachedModel) -> str:
    """Return the one line that tells :func:`need`, or why it cannot be told."""
    try:
        needed = need(model)
    except TrainingError as err:
        return f"export for trial: {err.message}"
    return (
        f"export for trial, before the first step: at most {mib(needed)} beside the weights, of "
        f"which code of up to {mib(LIBRARIES_BYTES)} stays"
    )


def rehearse(
    model: AttachedModel,
    data: DomainData,
    recipe: Recipe,
    *,
    cache: Path | None = None,
    notify: Notify = lambda _: None,
) -> None:
    """Refuse what the export would refuse once ``model`` is trained: its graphs and its limits.

    ``cache`` as in :func:`toolchain.export.export`; ``notify`` hears which step begins. Raises
    CaptureError, SplitError, LinkError, GraphError, BundleError and whatever the rooms raise.
    """
    frozen = model if model.overrides is None else slots_alone(model)
    notify("split")
    halves = split(frozen, cache=cache)
    notify("reference")
    golden = _golden(frozen, data, recipe)
    with tempfile.TemporaryDirectory(prefix="da3-rehearsal-") as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint"
        trained = models.save(checkpoint, frozen, recipe, data.classes, _evaluation(halves, data))
        notify("link")
        linked = link_domain(halves, trained)
        write_graphs(linked, folder)
        notify("pack")
        # The manifest has a limit, so the licence is as long as any.
        own = manifests.backbone(trained, halves, licence="-" * backbones.LICENCE_LETTERS)
        artefact = bundle.write_backbone(
            folder, own, graph=halves.backbone_graph, weights=halves.weights_data
        )
        draft = manifests.domain(
            trained,
            recipe,
            halves,
            artefact=artefact,
            reference=ReferenceCases(golden, golden, len(golden), 0, drawn=recipe.golden_drawn),
            report=_report(golden),
        )
        info = (checkpoint / checkpoints.INFO_FILE).read_bytes()
        bundle.pack(folder / "bundle", draft, payloads(linked, golden, recipe, info))


_ANY = 0.123457
"""Stands for a figure that nobody knows yet. It is as long as any, as a manifest has a limit."""


def _evaluation(halves: Halves, data: DomainData) -> Evaluation:
    # A rate between 0 and 1: ``static`` would resolve a gate that is always in one state.
    rates = {gate.removeprefix("gate."): _ANY for gate in halves.gates}
    right = round(_ANY * 10**6)
    confusion = Confusion(len(data.classes), ((0, 0, right), (0, 1, 10**6 - right)))
    return Evaluation(confusion, _ANY, _ANY, rates)


def _golden(model: AttachedModel, data: DomainData, recipe: Recipe) -> Golden:
    """Return golden data of the size that the trained domain's will have.

    The pictures are training pictures, as many as the recipe asks for and there are to test with;
    nobody sees them. The answers of the first one stand for those of all.
    """
    count = min(recipe.golden_pictures, len(data.test), len(data.train))
    pixels, _ = data.train.batch(np.arange(count))
    first = observe(model, recipe.preprocess, pixels[:1])
    natural = replace(first.take(np.zeros(count, np.int64)), pixels=pixels)
    return with_forced(model, recipe.preprocess, natural)


def _report(golden: Golden) -> ParityReport:
    comparisons = [
        Comparison(stem, batch, len(golden), _ANY, _ANY, 0, 0, passed=True)
        for stem in (*(linkage.stem for linkage in SHIPPED), STAGED.stem)
        for batch in parity.BATCHES
    ]
    forced = int((~golden.natural).sum())
    return ParityReport(tuple(comparisons), parity.TOLERANCE, len(golden), forced)
