"""What ``da3 inspect`` shows people: one view for each kind of file.

Rules of this file: values in, lines out. A view fits on a screen; ``--json`` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from toolchain.bundle import (
    BackboneFile,
    BackboneManifest,
    FileEntry,
    GateStates,
    Manifest,
    artefact_name,
)
from toolchain.cli.show import engines, layout, signed
from toolchain.cli.show.domain import classes, epoch, gate_rates, holds, metrics, patch_line
from toolchain.cli.show.graphs import graph, tensors, training
from toolchain.core.words import to_json
from toolchain.inspect import (
    BackboneFacts,
    Block,
    BundleFacts,
    CheckpointFacts,
    EngineFacts,
    GoldenFacts,
    GraphFacts,
    Inspection,
    KitFacts,
    RecipeFacts,
    TensorsFacts,
    TrainingFacts,
)
from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe import METHOD_OPTIONS
from toolchain.trust import KeyringFacts, MetadataFacts, SiteFacts


def view(inspection: Inspection, *, brief: bool = False) -> list[str]:
    """Return the lines for a file; ``brief`` leaves out what is inside a bundle."""
    facts = inspection.facts
    match facts:
        case RecipeFacts():
            body = _recipe(facts)
        case CheckpointFacts():
            body = _checkpoint(facts)
        case GraphFacts():
            body = graph(facts)
        case BundleFacts():
            body = _brief(facts) if brief else _bundle(facts)
        case BackboneFacts():
            body = _backbone(facts)
        case GoldenFacts():
            body = _golden(facts)
        case TrainingFacts():
            body = training(facts)
        case TensorsFacts():
            body = tensors(facts)
        case KitFacts():
            body = engines.kit(facts)
        case EngineFacts():
            body = engines.engine(facts)
        case MetadataFacts() | SiteFacts() | KeyringFacts():
            body = signed.view(facts)
    return [layout.title(f"{inspection.path}: {_kind(inspection.kind, facts)}"), *body]


def _kind(kind: str, facts: object) -> str:
    if isinstance(facts, GraphFacts):
        return f"ONNX, {facts.role}" if facts.role else "ONNX, not written by this toolchain"
    words = {
        "backbone": "backbone artefact, verified",
        "bundle": "bundle, verified",
        "golden": "golden data",
        "training": "half-done training",
        "tensors": "tensors (safetensors)",
        "kit": "kit, verified",
        "engine": "engine, verified",
        "metadata": "signed metadata",
        "site": "a site of signed releases",
        "keyring": "keys of a repository",
    }
    return words.get(kind, kind)


def _recipe(facts: RecipeFacts) -> list[str]:
    recipe = facts.recipe
    data, train = recipe.data, recipe.train
    options = {name: getattr(recipe.adaptor, name) for name in METHOD_OPTIONS[recipe.method]}
    return layout.pairs(
        {
            "domain": f"{recipe.domain}  ({recipe.title})",
            "backbone": f"{recipe.backbone}, weights {recipe.weights or 'as shipped'}",
            "method": f"{recipe.method}  {layout.listed(options)}".rstrip(),
            "data": f"{data.loader} {data.root or ''}".rstrip()
            + f", train {data.train or 'all'}, test {data.test or 'all'}, seed {data.seed}",
            "input": _preprocess(recipe.preprocess),
            "training": f"{train.epochs} epochs of batches of {train.batch}, lr {train.lr:g}, "
            f"budget {train.budget:g} (weight {train.budget_weight:g}), "
            f"augment {', '.join(train.augment) or 'nothing'}, seed {train.seed}",
            "golden": f"{recipe.golden_pictures} pictures "
            + ("drawn" if recipe.golden_drawn else "of the test data"),
            "licence": recipe.licence,
        }
    )


def _checkpoint(facts: CheckpointFacts) -> list[str]:
    info = facts.info
    measured = metrics(to_json(info.metrics), info.metrics.executed_share)
    options = {name: getattr(info.options, name) for name in METHOD_OPTIONS[info.method]}
    return [
        *layout.pairs(
            {
                "domain": f"{info.domain}  ({info.title})",
                "backbone": f"{info.backbone.name}  {info.backbone.weights_digest}",
                "method": f"{info.method}  {layout.listed(options)}".rstrip(),
                "classes": f"{len(info.classes)}: {layout.some(info.classes)}",
                "input": _preprocess(info.preprocess),
                **measured,
                **epoch(info.history),
                "trained": f"torch {info.versions.torch}, seed {info.seed}, "
                f"recipe {info.recipe_digest}",
                "tensors": f"{len(facts.slots)}, {layout.size(facts.size_bytes)}",
            }
        ),
        "",
        *_slots(facts.blocks),
        "",
        *layout.gates(info.metrics.gate_rates),
        *classes(info),
    ]


def _bundle(facts: BundleFacts) -> list[str]:
    m = facts.manifest
    return [
        *layout.pairs(
            {
                "domain": f"{m.domain}, version {m.version}, created {m.created}",
                "manifest": facts.manifest_digest,
                "size": layout.size(facts.size_bytes),
                "backbone": m.backbone.name,
                "  weights": m.backbone.weights_digest,
                "  graph": m.backbone.graph_digest,
                "method": f"{m.adaptor.method}  {layout.listed(_options(m))}".rstrip(),
                **patch_line(m),
                "classes": f"{len(m.classes)}: {layout.some(m.classes)}",
                "input": _preprocess(m.preprocess),
                **metrics(m.metrics, m.gates.executed_share),
                **epoch(facts.training.history if facts.training else None),
                **holds(m),
                "made by": layout.listed(m.provenance),
                "licence": m.licence,
            }
        ),
        "",
        *_files(m.files, roles=[entry.role for entry in m.files]),
        "",
        *_slots(facts.blocks),
        "",
        *layout.gates(gate_rates(m)),
        *(classes(facts.training) if facts.training else []),
        "",
        *engines.plans(m.plans),
        *_selftest(m),
        "",
        *_parity(m),
    ]


def _brief(facts: BundleFacts) -> list[str]:
    m = facts.manifest
    return [
        *layout.pairs(
            {
                "domain": f"{m.domain}, {m.adaptor.method}, {len(m.classes)} classes",
                "size": layout.size(facts.size_bytes),
                "backbone": artefact_name(
                    m.backbone.name, m.preprocess.size, m.backbone.weights_digest
                ),
                **patch_line(m),
                **metrics(m.metrics, m.gates.executed_share),
                **holds(m),
            }
        ),
        "",
        *layout.gates(gate_rates(m)),
        "",
        *_parity(m),
    ]


def _options(m: Manifest) -> dict[str, object]:
    """Return the options that the method has; of a method that nobody here knows, all."""
    names = METHOD_OPTIONS.get(m.adaptor.method, tuple(m.adaptor.options))
    return {name: value for name, value in m.adaptor.options.items() if name in names}


def _backbone(facts: BackboneFacts) -> list[str]:
    m: BackboneManifest = facts.manifest
    rows = [
        (
            block.name,
            layout.shape(block.shape_in),
            layout.shape(block.shape_out),
            f"{block.flops / 1e6:.2f}",
            "yes" if block.gateable else "no",
        )
        for block in m.blocks
    ]
    return [
        *layout.pairs(
            {
                "backbone": m.name,
                "weights": m.weights_digest,
                "graph": m.graph_digest,
                "size": layout.size(facts.size_bytes),
                "input": f"{m.input.channels} channels, {m.input.size} px",
                "ONNX": f"opset {m.opset}, IR version {m.ir_version}",
                "taps": f"{len(m.taps)}: {layout.some([tap.name for tap in m.taps])}",
                "made by": layout.listed(m.provenance),
                "licence": m.licence,
            }
        ),
        "",
        *_files(m.files),
        "",
        *layout.table(("block", "in", "out", "MFLOPs", "gateable"), rows, right="3"),
    ]


def _golden(facts: GoldenFacts) -> list[str]:
    return [
        *layout.pairs(
            {
                "cases": f"{facts.cases}, {facts.cases - facts.natural} of them with forced gates",
                "pictures": layout.shape(facts.picture),
                "classes": facts.classes,
                "blocks": f"{len(facts.sites)}: {layout.some(facts.sites)}",
            }
        ),
        "",
        *_states(facts.gates),
    ]


def _files(
    entries: Sequence[FileEntry | BackboneFile], roles: Sequence[str] | None = None
) -> list[str]:
    rows = [(entry.name, layout.size(entry.size), entry.digest) for entry in entries]
    if roles is None:
        return layout.table(("file", "size", "digest"), rows, right="1")
    wider = [(*row, role) for row, role in zip(rows, roles, strict=True)]
    return layout.table(("file", "size", "digest", "role"), wider, right="1")


def _slots(blocks: Iterable[Block]) -> list[str]:
    rows = [
        (
            block.name,
            block.tensors,
            block.elements,
            layout.listed(block.parts) if len(block.parts) > 1 else "",
        )
        for block in blocks
    ]
    return layout.table(("slots of", "tensors", "elements", ""), layout.shortened(rows), right="12")


def _selftest(m: Manifest) -> list[str]:
    test = m.selftest
    return [
        f"  selftest: {test.samples} samples, tolerance {test.tolerance_relative:g} of the range",
        *_states(test.gate_states),
    ]


def _states(states: Mapping[str, GateStates]) -> list[str]:
    if not states:
        return ["  no gates"]
    rows = [(n, s.open, s.closed, "forced" if s.forced else "") for n, s in states.items()]
    return layout.table(("gate", "open", "closed", ""), rows, right="12")


def _parity(m: Manifest) -> list[str]:
    """Return the table of a manifest's notes ``<flavour>.batch<N>.<measure>``."""
    rows: dict[str, dict[str, object]] = {}
    for key, value in m.parity.items():
        stem, _, measure = key.rpartition(".")
        if stem:
            rows.setdefault(stem, {})[measure] = value
    heads = ("max_abs", "max_relative", "top1_mismatches", "gate_mismatches")
    cells = [(stem, *(row.get(head, "-") for head in heads)) for stem, row in sorted(rows.items())]
    return layout.table(("parity", *heads), cells, right="1234") if cells else ["  no parity noted"]


def _preprocess(p: Preprocessing) -> str:
    """Return one line; a bundle's own record has the same fields."""
    numbers = "; ".join(
        f"{name} {', '.join(f'{value:g}' for value in getattr(p, name))}"
        for name in ("mean", "std")
    )
    shape = f"{p.colour} {p.size}x{p.size}"
    return f"{shape}, resize {p.resize} {p.interpolation}, crop {p.crop}; {numbers}"


__all__ = ["view"]
