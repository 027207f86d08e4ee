"""The pipeline of ``da3-export``: checkpoint in, checked bundle out.

Rules of this file: it calls the rooms in order (restore, split, link, check, pack) and holds no
logic of theirs; nothing appears in the destination before parity has passed; the backbone artefact
is written once and reused while its digests match. Progress is told to a callback, never printed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.numpy import load as load_safetensors

from toolchain import bundle
from toolchain.bundle import (
    BackboneArtefact,
    BackboneManifest,
    Manifest,
    Patched,
    Payload,
    PrecisionCost,
)
from toolchain.bundle.golden import Golden
from toolchain.bundle.linkage import SHIPPED, SWAP_IF
from toolchain.bundle.patch import PATCH_NAME
from toolchain.core import digest
from toolchain.core.canonical import rounded
from toolchain.core.errors import (
    BackboneMismatchError,
    CheckpointError,
    Da3Error,
    ExistsError,
    UsageError,
)
from toolchain.core.files import make_folder, write_atomic
from toolchain.core.timing import Notify
from toolchain.export import manifests
from toolchain.export.check import candidates, parity
from toolchain.export.check.parity import ParityReport, Subject
from toolchain.export.check.reference import Chosen, choose, join
from toolchain.export.emit.kits import KitSource
from toolchain.export.emit.models import KitOrder, in_memory
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves, require_same_graphs, split
from toolchain.export.orders import KitReport, Orders
from toolchain.export.prepare import KitDomain
from toolchain.recipe import Recipe, dump
from toolchain.training.adapt import checkpoint as checkpoints
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.folded import overrides_folded, slots_alone
from toolchain.training.adapt.restore import restore
from toolchain.training.data import DomainData
from toolchain.training.data import load as load_data

SUFFIX = ".da3b"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export made and measured; ``seconds`` by step."""

    domain: str
    bundle: Path
    bundle_bytes: int
    manifest: Manifest
    backbone: Path
    backbone_bytes: int
    backbone_reused: bool
    structure_cached: bool
    parity: ParityReport
    searched: int
    ambiguous: int
    kits: tuple[KitReport, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Clock:
    """Times steps and tells of each as it begins."""

    notify: Notify
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.notify(name)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def export(
    recipe: Recipe,
    *,
    checkpoint: Path,
    dist: Path,
    cache: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    tolerance: float = parity.TOLERANCE,
    orders: Sequence[KitOrder] = (),
    notify: Notify = lambda _: None,
) -> ExportReport:
    """Export the trained domain in ``checkpoint`` to ``dist/<domain>.da3b``, checked.

    Writes ``dist/backbone-<name>-<digest>/`` too unless it is there. ``cache`` keeps split
    structures between exports. Raises ParityError with nothing written when a flavour does not
    answer as PyTorch does; ExistsError when the bundle exists and ``overwrite`` is false; and
    whatever the rooms raise. ``orders``: kits to write beside the bundle; what their precision
    costs stands in it. A domain with tensors of the backbone of its own is written as the frozen
    backbone and a patch in the bundle; UsageError for such a one with ``orders``.
    """
    for order in orders:
        order.require()
    clock = _Clock(notify)
    target = dist / f"{recipe.domain}{SUFFIX}"
    if not overwrite:
        refuse_existing(target)
    with clock.step("restore"):
        model, kept = restore(checkpoint, weights=recipe.weights_path)
        changed = overrides_folded(model)
        if changed is not None and orders:
            raise _no_kit(recipe)
    with clock.step("data"):
        data = load_data(recipe)
        _refuse_foreign(checkpoint, kept, recipe, data.classes)
    with clock.step("split"):
        halves, patch = _split(model, changed, cache)
    with clock.step("reference"):
        chosen = choose(model, data.test, recipe.preprocess, count=recipe.golden)
    with tempfile.TemporaryDirectory(prefix="da3-export-") as folder:
        with clock.step("link"):
            weights = halves.weights_data if patch is None else patch.weights
            graphs = _link(halves, weights, kept, Path(folder))
        with clock.step("check"):
            linked = _Linked(halves, graphs, _rates(kept), Path(folder))
            cases = join([chosen.golden, chosen.others])
            report = _check(linked, cases, recipe, threads=threads, tolerance=tolerance)
    own = manifests.backbone(kept, halves)
    place = dist / bundle.artefact_name(own.name, own.weights_digest)
    draft = manifests.domain(
        kept,
        recipe,
        halves,
        artefact=BackboneArtefact(place, own),
        chosen=chosen,
        report=report,
        patch=None if patch is None else patch.about,
    )
    ordered = Orders(orders, _rates(kept), dist, overwrite=overwrite)
    if orders:
        graph = digest.sha256(graphs[SWAP_IF.stem])
        plans = ordered.prepare(_kit_domain(recipe, draft, own, halves, graph, data), clock.step)
        draft = replace(draft, plans=plans)
    if patch is None:
        draft = replace(draft, plans=draft.plans + _kept_plans(target, halves, draft.plans))
    with clock.step("pack"):
        make_folder(dist, fix="choose another with --dist")
        artefact, reused = _backbone(own, halves, place)
        payloads = _payloads(halves, graphs, checkpoint, chosen, recipe)
        if patch is not None:
            payloads.append(Payload("patch", PATCH_NAME, patch.data))
        # The bundle comes last: whoever finds it finds what it tells of.
        kits = ordered.write(_release(draft, payloads) if orders else "")
        manifest = bundle.pack(target, draft, payloads, overwrite=overwrite)
    return ExportReport(
        recipe.domain,
        target,
        target.stat().st_size,
        manifest,
        artefact.path,
        sum(f.size for f in artefact.manifest.files),
        reused,
        halves.cached,
        report,
        chosen.searched,
        chosen.ambiguous,
        kits,
        clock.seconds,
    )


def refuse_existing(path: Path) -> None:
    """Raise ExistsError early, before minutes of work end in it."""
    if path.exists():
        raise ExistsError(
            f"{path} exists", fix="pass --overwrite, or choose another folder with --dist"
        )


def _no_kit(recipe: Recipe) -> UsageError:
    return UsageError(
        f"{recipe.domain}: expected a domain on the frozen backbone for --target, got one whose "
        f"method {recipe.method!r} changes the backbone's tensors; engines share the frozen one",
        fix="export without --target, or train the domain with da3, da2 or head",
    )


def _split(
    model: AttachedModel, changed: AttachedModel | None, cache: Path | None
) -> tuple[PackedHalves, Patched | None]:
    """Return the halves on the frozen backbone, and the patch for the changed one.

    The changed one is captured each time: nobody but this domain would find it in the cache.
    """
    if changed is None:
        return split(model, cache=cache), None
    halves, theirs = split(slots_alone(model), cache=cache), split(changed)
    require_same_graphs(halves, theirs)
    return halves, bundle.make_patch(halves.weights_data, theirs.weights_data)


def _refuse_foreign(
    folder: Path, kept: checkpoints.Checkpoint, recipe: Recipe, classes: tuple[str, ...]
) -> None:
    """Refuse a checkpoint that another recipe trained: parity could not tell."""
    info = kept.info
    pairs = {
        "domain": (recipe.domain, info.domain),
        "backbone": (recipe.backbone, info.backbone.name),
        "method": (recipe.method, info.method),
        "adaptor": (recipe.adaptor, info.options),
        "preprocess": (recipe.preprocess, info.preprocess),
        "classes": (classes, info.classes),
    }
    lines = [
        f"\n  {key}: the recipe says {want}, the checkpoint {got}"
        for key, (want, got) in pairs.items()
        if want != got
    ]
    if lines:
        raise CheckpointError(
            f"{folder} was trained by another recipe{''.join(lines)}",
            fix=_other_method(recipe, info.method)
            or f"name the checkpoint of {recipe.domain!r}, or train it again with overwriting",
        )


def _other_method(recipe: Recipe, trained: str) -> str:
    return "" if trained == recipe.method else f"export it as what it is, with --method {trained}"


def _rates(kept: checkpoints.Checkpoint) -> dict[str, float]:
    # Rounded as in the manifest, so that linking anew from a bundle gives the same graphs.
    return {site: rounded(rate) for site, rate in kept.info.metrics.gate_rates.items()}


def _kept_plans(
    path: Path, halves: PackedHalves, plans: tuple[PrecisionCost, ...]
) -> tuple[PrecisionCost, ...]:
    """Return what the bundle that is replaced says of other kits, if its tensors are the same."""
    try:
        before = bundle.open_bundle(path).manifest
    except Da3Error:
        return ()
    if before.patch is not None or before.adaptor.slots != bundle.slot_table(halves.slots_data):
        return ()
    anew = {(plan.target, plan.precision) for plan in plans}
    return tuple(plan for plan in before.plans if (plan.target, plan.precision) not in anew)


def _kit_domain(
    recipe: Recipe,
    manifest: Manifest,
    own: BackboneManifest,
    halves: PackedHalves,
    graph: str,
    data: DomainData,
) -> KitDomain:
    """Return the domain as kits are made for it; ``graph``: digest of ``swap-if``."""
    source = KitSource(
        manifest=manifest, backbone=own, slots=load_safetensors(halves.slots_data), graph=graph
    )
    return KitDomain(
        source=source, split=in_memory(halves), data=data, preprocess=recipe.preprocess
    )


def _release(draft: Manifest, payloads: list[Payload]) -> str:
    """Return the digest that the bundle's manifest will have."""
    with tempfile.TemporaryDirectory(prefix="da3-export-") as folder:
        return digest.sha256(bundle.pack(Path(folder) / "bundle", draft, payloads).to_json())


def _link(
    halves: PackedHalves, weights: bytes, kept: checkpoints.Checkpoint, folder: Path
) -> dict[str, bytes]:
    """Link every shipped flavour, write it beside its tensors, and let onnx.checker look at all.

    ``weights``: the file that it runs on, patched where the domain has a patch.
    """
    write_atomic(folder / WEIGHTS_FILE, weights)
    write_atomic(folder / SLOTS_FILE, halves.slots_data)
    graphs = {one.stem: store.to_bytes(link(halves, one, rates=_rates(kept))) for one in SHIPPED}
    for stem, data in {
        "backbone": halves.backbone_graph,
        "domain": halves.domain_graph,
        **graphs,
    }.items():
        path = folder / f"{stem}.onnx"
        write_atomic(path, data)
        store.check(path)
    return graphs


@dataclass(frozen=True, slots=True)
class _Linked:
    """What the check runs: halves, graphs by name, how each was linked, and where tensors lie."""

    halves: PackedHalves
    graphs: dict[str, bytes]
    rates: dict[str, float]
    folder: Path


def _check(
    linked: _Linked, cases: Golden, recipe: Recipe, *, threads: int | None, tolerance: float
) -> ParityReport:
    halves, folder = linked.halves, linked.folder
    slots = load_safetensors(halves.slots_data)
    found: list[Subject] = [
        candidates.shipped(
            one,
            linked.graphs[one.stem],
            folder,
            slots,
            tapped=candidates.tapped(halves, one, linked.rates, folder, slots),
        )
        for one in SHIPPED
    ]
    found.append(candidates.staged(halves, folder))
    return parity.compare(
        cases, found, slots, recipe.preprocess, tolerance=tolerance, threads=threads
    ).require()


def _backbone(
    wanted: BackboneManifest, halves: PackedHalves, path: Path
) -> tuple[BackboneArtefact, bool]:
    """Return the artefact at ``path``, written if it is not there, and whether it was there."""
    try:
        written = bundle.write_backbone(
            path.parent, wanted, graph=halves.backbone_graph, weights=halves.weights_data
        )
    except ExistsError:
        # There before, or put there this moment by another export.
        return _same_backbone(path, wanted), True
    return written, False


def _same_backbone(path: Path, wanted: BackboneManifest) -> BackboneArtefact:
    found = bundle.open_backbone(path)
    if found.manifest.graph_digest != wanted.graph_digest:
        raise BackboneMismatchError(
            f"{path} was exported by another version: expected the graph "
            f"{wanted.graph_digest}, got {found.manifest.graph_digest}",
            fix="export into another folder, and its other domains again, or remove it",
        )
    return found


def _payloads(
    halves: PackedHalves, graphs: dict[str, bytes], folder: Path, chosen: Chosen, recipe: Recipe
) -> list[Payload]:
    files = [
        Payload("domain", "domain.onnx", halves.domain_graph),
        Payload("slots", SLOTS_FILE, halves.slots_data),
        Payload("golden", "golden.safetensors", chosen.golden.to_bytes()),
        Payload("recipe", "recipe.yaml", dump(recipe).encode()),
        Payload("training", "training.json", (folder / checkpoints.INFO_FILE).read_bytes()),
    ]
    return files + [Payload(one.role, one.file, graphs[one.stem]) for one in SHIPPED]
