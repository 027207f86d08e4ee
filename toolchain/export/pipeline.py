"""The pipeline of ``da3-export``: checkpoint in, checked bundle out.

Rules of this file: it calls the rooms in order (restore, split, link, check, pack) and holds no
logic of theirs. Nothing appears in the destination before parity has passed. The backbone artefact
is written once, and reused while its digests match. A callback hears of progress; nothing is
printed. What lies between a split and a bundle is in :mod:`toolchain.export.linked`.
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
from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.bundle.golden import Golden
from toolchain.core import digest
from toolchain.core.errors import Da3Error, UsageError
from toolchain.core.files import make_folder
from toolchain.core.timing import Notify
from toolchain.export import manifests
from toolchain.export.check import parity
from toolchain.export.check.parity import ParityReport
from toolchain.export.check.reference import ReferenceCases, choose, join, joint_rates
from toolchain.export.emit.kits import KitSource
from toolchain.export.emit.models import KitOrder
from toolchain.export.graph.split import PackedHalves, in_memory, require_same_graphs, split
from toolchain.export.linked import (
    LinkedDomain,
    compare,
    link_domain,
    payloads,
    refuse_other_artefact,
    write_artefact,
    write_graphs,
)
from toolchain.export.orders import KitReport, Orders, RefusedKit
from toolchain.export.prepare import KitDomain
from toolchain.export.refusals import refuse_existing, refuse_foreign
from toolchain.recipe import Recipe
from toolchain.training.adapt import backbones
from toolchain.training.adapt import checkpoint as checkpoints
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.checkpoint import Checkpoint
from toolchain.training.adapt.folded import overrides_folded, slots_alone
from toolchain.training.adapt.restore import restore
from toolchain.training.data import DomainData
from toolchain.training.data import load as load_data
from toolchain.training.loop.holdout import parted


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
    refused: tuple[RefusedKit, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Stopwatch:
    """Times steps, and reports each one as it begins."""

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
    name: str | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    tolerance: float | None = None,
    orders: Sequence[KitOrder] = (),
    notify: Notify = lambda _: None,
) -> ExportReport:
    """Export the trained domain in ``checkpoint`` to ``dist/<name>.da3b``, checked.

    ``name`` is the domain's unless another one is given. Writes
    ``dist/backbone-<name>-<size>px-<digest>/`` too unless it is there. If the domain changes
    tensors of the backbone, the frozen backbone is written, and the bundle holds a patch. ``cache``
    keeps split structures between exports. ``orders``: kits to write beside the bundle, which says
    what their precision costs; one that costs too much is left out and listed in ``refused``.
    ``tolerance``: the largest error of a logit relative to the logits' range, 1e-4 by default. If
    lower precisions are ordered it holds for them, who have no bound by default, and in fp32
    nothing above 1e-4 passes. Raises ParityError with nothing written if a flavour does not answer
    as PyTorch does, ExistsError if the bundle exists and ``overwrite`` is false, UsageError for
    ``orders`` of a domain that changes the backbone, and whatever the rooms raise.
    """
    # What can be refused without any work is refused first.
    for order in orders:
        order.require()
    target = dist / f"{name or recipe.domain}{BUNDLE_SUFFIX}"
    if not overwrite:
        refuse_existing(target)
    clock = _Stopwatch(notify)
    source = _load(recipe, checkpoint, clock, for_kits=bool(orders))
    checked = _checked(
        source, dist, cache, clock, threads=threads, tolerance=_fp32_bound(tolerance, orders)
    )
    linked, reference = checked.linked, checked.reference
    own, draft = checked.own, _draft(checked, dist)
    kits = Orders(orders, linked.rates, dist, overwrite=overwrite, bound=tolerance)
    plans: tuple[PrecisionCost, ...] = ()
    if orders:
        plans = kits.prepare(_kit_domain(source, draft, own, linked), clock.step, notify)
    draft = replace(draft, plans=plans + _kept_plans(target, linked, plans))
    with clock.step("pack"):
        make_folder(dist, fix="choose another with --dist")
        artefact, reused = write_artefact(dist, own, linked.halves)
        info = (checkpoint / checkpoints.INFO_FILE).read_bytes()
        files = payloads(linked, reference.golden, recipe, info)
        # The bundle comes last: whoever finds it finds what it tells of.
        kit_reports = kits.write(_release(draft, files) if orders else "")
        manifest = bundle.pack(target, draft, files, overwrite=overwrite)
    return ExportReport(
        domain=recipe.domain,
        bundle=target,
        bundle_bytes=target.stat().st_size,
        manifest=manifest,
        backbone=artefact.path,
        backbone_bytes=sum(f.size for f in artefact.manifest.files),
        backbone_reused=reused,
        structure_cached=linked.halves.cached,
        parity=checked.report,
        searched=reference.searched,
        ambiguous=reference.ambiguous,
        kits=kit_reports,
        refused=kits.refused,
        seconds=clock.seconds,
    )


def _fp32_bound(tolerance: float | None, orders: Sequence[KitOrder]) -> float:
    """Return the largest error of a logit in fp32, relative to the logits' range."""
    exact = parity.TOLERANCE if tolerance is None else tolerance
    if any(order.precision != "fp32" for order in orders):
        # A wide bound is meant for the kits then; what runs in fp32 stays as exact as ever.
        return min(exact, parity.TOLERANCE)
    return exact


@dataclass(frozen=True, slots=True)
class _TrainedDomain:
    """What is exported: a trained domain, and the pictures that it is checked with.

    ``folded``: the model with the domain's own tensors of the backbone in place; None for a domain
    on the frozen backbone.
    """

    recipe: Recipe
    model: AttachedModel
    folded: AttachedModel | None
    trained: Checkpoint
    data: DomainData


def _load(recipe: Recipe, folder: Path, clock: _Stopwatch, *, for_kits: bool) -> _TrainedDomain:
    """Restore the checkpoint in ``folder`` and read the data that its recipe names."""
    with clock.step("restore"):
        model, trained = restore(folder, weights=recipe.weights_path)
        folded = overrides_folded(model)
        if folded is not None and for_kits:
            raise UsageError(
                f"{recipe.domain}: expected a domain on the frozen backbone for --target, got one "
                f"whose method {recipe.method!r} changes the backbone's tensors; engines share the "
                "frozen one",
                fix="export without --target, or train the domain with da3, da2 or head",
            )
    with clock.step("data"):
        data = load_data(recipe)
        refuse_foreign(folder, trained.info, recipe, data.classes)
    return _TrainedDomain(recipe, model, folded, trained, data)


def _split(
    model: AttachedModel, folded: AttachedModel | None, cache: Path | None
) -> tuple[PackedHalves, Patched | None]:
    """Return the halves on the frozen backbone, and the patch for a changed one.

    The changed backbone is captured each time: no other domain would find it in the cache.
    """
    if folded is None:
        return split(model, cache=cache), None
    halves, changed = split(slots_alone(model), cache=cache), split(folded)
    require_same_graphs(halves, changed)
    return halves, bundle.make_patch(halves.weights_data, changed.weights_data)


@dataclass(frozen=True, slots=True)
class _CheckedDomain:
    """A domain that answers as PyTorch does: its graphs, and what they were compared with.

    ``trained``: the checkpoint with the gates' rates that the reference measured. ``own``: the
    manifest of the frozen backbone's artefact.
    """

    source: _TrainedDomain
    trained: Checkpoint
    own: BackboneManifest
    linked: LinkedDomain
    reference: ReferenceCases
    report: ParityReport


def _checked(
    source: _TrainedDomain,
    dist: Path,
    cache: Path | None,
    clock: _Stopwatch,
    *,
    threads: int | None,
    tolerance: float,
) -> _CheckedDomain:
    """Split the domain, link it in a temporary folder, and hold every flavour to PyTorch.

    A backbone in ``dist`` that is another one is refused before that.
    """
    preprocess = source.recipe.preprocess
    with clock.step("split"):
        halves, patch = _split(source.model, source.folded, cache)
        licence = backbones.get(source.trained.info.backbone.name).licence
        own = manifests.backbone(source.trained, halves, licence)
        refuse_other_artefact(dist, own)
    with clock.step("reference"):
        reference = _reference(source)
        cases = join([reference.golden, reference.others])
        trained = _with_rates(source.trained, cases)
    with tempfile.TemporaryDirectory(prefix="da3-export-") as name:
        folder = Path(name)
        with clock.step("link"):
            linked = link_domain(halves, trained, patch)
            write_graphs(linked, folder)
        with clock.step("check"):
            report = compare(
                linked, cases, preprocess, folder, threads=threads, tolerance=tolerance
            )
    return _CheckedDomain(source, trained, own, linked, reference, report)


def _reference(source: _TrainedDomain) -> ReferenceCases:
    """Return what PyTorch answers to pictures of the test split, and to forced gates."""
    recipe = source.recipe
    return choose(
        source.model,
        source.data.test,
        recipe.preprocess,
        count=recipe.golden_pictures,
        seed=recipe.data.seed if recipe.golden_drawn else None,
    )


def _with_rates(trained: Checkpoint, cases: Golden) -> Checkpoint:
    rates = joint_rates(trained.info.metrics, cases.take(cases.natural))
    metrics = replace(trained.info.metrics, gate_rates=rates)
    return replace(trained, info=replace(trained.info, metrics=metrics))


def _draft(checked: _CheckedDomain, dist: Path) -> Manifest:
    """Return the manifest of the bundle beside its backbone in ``dist``.

    It lacks the files, which packing fills in, and what kits cost.
    """
    trained, halves, patch = checked.trained, checked.linked.halves, checked.linked.patch
    own = checked.own
    # The artefact is not written yet, because nothing may appear before all is checked. The
    # bundle's manifest needs only its name and digests.
    place = dist / bundle.artefact_name(own.name, own.input.size, own.weights_digest)
    return manifests.domain(
        trained,
        checked.source.recipe,
        halves,
        artefact=BackboneArtefact(place, own),
        reference=checked.reference,
        report=checked.report,
        patch=None if patch is None else patch.about,
    )


def _kept_plans(
    path: Path, linked: LinkedDomain, plans: tuple[PrecisionCost, ...]
) -> tuple[PrecisionCost, ...]:
    """Return what the old bundle says of other kits, if it holds the same tensors."""
    # Kits hold the frozen backbone, so no figure of theirs holds for a patched one.
    if linked.patch is not None:
        return ()
    try:
        before = bundle.open_bundle(path).manifest
    except Da3Error:
        return ()
    slots = bundle.slot_table(linked.halves.slots_data)
    if before.patch is not None or before.adaptor.slots != slots:
        return ()
    anew = {(plan.target, plan.precision) for plan in plans}
    return tuple(plan for plan in before.plans if (plan.target, plan.precision) not in anew)


def _kit_domain(
    source: _TrainedDomain, manifest: Manifest, own: BackboneManifest, linked: LinkedDomain
) -> KitDomain:
    """Return what kits need of the domain."""
    kit_source = KitSource(
        manifest=manifest,
        backbone=own,
        slots=load_safetensors(linked.halves.slots_data),
        graph=linked.graph_digest,
    )
    return KitDomain(
        source=kit_source,
        split=in_memory(linked.halves),
        pictures=parted(source.data, source.recipe),
        preprocess=source.recipe.preprocess,
    )


def _release(draft: Manifest, files: list[Payload]) -> str:
    """Return the digest that the bundle's manifest will have."""
    # Packing fills in files and slots, so only a packed manifest has the final digest. The draft
    # has its date already: packed again, it gives the same bytes.
    with tempfile.TemporaryDirectory(prefix="da3-export-") as folder:
        return digest.sha256(bundle.pack(Path(folder) / "bundle", draft, files).to_json())
