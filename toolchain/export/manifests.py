"""From what an export knows to the manifests that it writes.

Rules of this file: values in, values out; it decides nothing and measures nothing. Figures are
rounded to six significant digits, so that two machines that agree write the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

import onnx
import onnxruntime

from toolchain import DISTRIBUTION, bundle
from toolchain.bundle import (
    Adaptation,
    BackboneArtefact,
    BackboneBlock,
    BackboneInput,
    BackboneManifest,
    BackboneRef,
    GateBlock,
    Gates,
    Manifest,
    Patch,
    Requires,
    Selftest,
    Tap,
)
from toolchain.bundle.backbone import GRAPH_NAME
from toolchain.bundle.graphs import WEIGHTS_NAME
from toolchain.bundle.limits import computing_seconds
from toolchain.bundle.manifest import SCHEMA
from toolchain.core.canonical import rounded
from toolchain.core.sealed import listing
from toolchain.export.check.parity import ParityReport
from toolchain.export.check.reference import ReferenceCases
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.names import DIALECT, Cut
from toolchain.export.graph.split import PackedHalves
from toolchain.recipe import Recipe
from toolchain.training.adapt.checkpoint import Checkpoint

TIME_LIMIT_S = 60.0
"""What a self-test may take at least; a large net gets more."""


def backbone(trained: Checkpoint, halves: PackedHalves, licence: str) -> BackboneManifest:
    """Return the manifest of the backbone artefact; file entries are filled in when written.

    ``licence`` is that of the backbone's package.
    """
    info = trained.info.backbone
    contents = {GRAPH_NAME: halves.backbone_graph, WEIGHTS_NAME: halves.weights_data}
    files = listing(bundle.BackboneFile, contents)
    return BackboneManifest(
        schema="da3.backbone/1",
        name=info.name,
        weights_digest=info.weights_digest,
        # Entries are sorted by name: the graph stands before the weights.
        graph_digest=bundle.graph_digest(files[0].digest, files[1].digest),
        input=BackboneInput(size=info.input_shape[1], channels=info.input_shape[0]),
        opset=DIALECT.opset,
        ir_version=DIALECT.ir_version,
        files=files,
        blocks=tuple(_block(cut) for cut in halves.cuts),
        taps=taps(halves),
        licence=licence,
        provenance={"toolchain": version(DISTRIBUTION), "torch": trained.info.versions.torch},
    )


def _block(cut: Cut) -> BackboneBlock:
    return BackboneBlock(cut.site, cut.in_shape, cut.out_shape, cut.flops, cut.gateable)


def taps(halves: Halves) -> tuple[Tap, ...]:
    """Return what a domain may read of the backbone: every graph output, without the batch."""
    outputs = []
    for value in halves.backbone.graph.outputs:
        assert value.shape is not None
        shape = tuple(d for d in list(value.shape)[1:] if isinstance(d, int))
        outputs.append(Tap(value.name or "", shape, "float32"))
    return tuple(outputs)


def domain(
    trained: Checkpoint,
    recipe: Recipe,
    halves: PackedHalves,
    *,
    artefact: BackboneArtefact,
    reference: ReferenceCases,
    report: ParityReport,
    patch: Patch | None = None,
) -> Manifest:
    """Return the manifest of a domain's bundle; files and slots are filled in when packed."""
    info, metrics = trained.info, trained.info.metrics
    own = artefact.manifest
    return Manifest(
        schema=SCHEMA,
        min_agent="0.1",
        created=bundle.created_now(),
        domain=recipe.domain,
        version=version(DISTRIBUTION),
        release_counter=0,
        files=(),
        backbone=BackboneRef(own.name, own.weights_digest, own.graph_digest, own.taps),
        adaptor=Adaptation(info.method, asdict(info.options), ()),
        preprocess=info.preprocess,
        classes=info.classes,
        gates=Gates(_gate_blocks(halves, metrics.gate_rates), rounded(metrics.executed_share)),
        plans=(),
        requires=Requires(None, None, None),
        selftest=_selftest(reference, report, sum(cut.flops for cut in halves.cuts)),
        parity=_parity(report),
        metrics=_metrics(trained),
        fallback=None,
        provenance={
            "toolchain": version(DISTRIBUTION),
            "torch": info.versions.torch,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "recipe_digest": info.recipe_digest,
        },
        licence=recipe.licence,
        patch=patch,
    )


def _gate_blocks(halves: Halves, rates: Mapping[str, float]) -> tuple[GateBlock, ...]:
    return tuple(
        GateBlock(
            cut.site,
            cut.gateable,
            cut.flops,
            rounded(rates[cut.site]) if cut.site in rates else None,
        )
        for cut in halves.cuts
    )


def _selftest(reference: ReferenceCases, report: ParityReport, flops: int) -> Selftest:
    golden = reference.golden
    return Selftest(
        inputs="golden",
        outputs="golden",
        samples=len(golden),
        tolerance_relative=report.tolerance,
        gate_states=golden.states(),
        time_limit_s=time_limit_s(flops, len(golden)),
        pictures="drawn" if reference.drawn else "test",
    )


def time_limit_s(flops: int, cases: int) -> float:
    """Return the seconds that a device may take to answer ``cases``: as long as a slow one needs.

    ``flops``: multiply-adds of the backbone for one picture.
    """
    return max(TIME_LIMIT_S, float(math.ceil(computing_seconds(flops, cases))))


def _parity(report: ParityReport) -> dict[str, int | float | str | bool | None]:
    notes: dict[str, int | float | str | bool | None] = {}
    for c in report.comparisons:
        stem = f"{c.flavour}.batch{c.batch}"
        notes[f"{stem}.max_abs"] = rounded(c.max_absolute)
        notes[f"{stem}.max_relative"] = rounded(c.max_relative)
        notes[f"{stem}.top1_mismatches"] = c.top1_mismatches
        notes[f"{stem}.gate_mismatches"] = c.gate_mismatches
    return notes | {"cases": report.cases, "forced": report.forced}


def _metrics(trained: Checkpoint) -> dict[str, int | float | str | bool | None]:
    metrics = trained.info.metrics
    measured = {
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "head_accuracy": metrics.head_accuracy,
        "executed_share": metrics.executed_share,
    }
    return {name: None if share is None else rounded(share) for name, share in measured.items()}
