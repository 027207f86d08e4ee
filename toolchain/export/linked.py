"""A domain as it is shipped: linked in every shipped flavour, compared with PyTorch, packed.

Rules of this file: the steps between a split and a bundle, each a function, for whoever makes
bundles (the export, and the benchmarks, which draw their domains). It holds no logic of the rooms
that it calls: ``graph`` links, ``check`` compares, :mod:`toolchain.bundle` packs. It does not
decide what is exported, and emits nothing for boards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load as load_safetensors

from toolchain import bundle
from toolchain.bundle import BackboneArtefact, BackboneManifest, Patched, Payload
from toolchain.bundle.backbone import ARTEFACT
from toolchain.bundle.golden import Golden
from toolchain.bundle.graphs import graph_files, require_graph
from toolchain.bundle.linkage import SHIPPED, SWAP_IF, Linkage
from toolchain.bundle.patch import PATCH_NAME
from toolchain.core import digest
from toolchain.core.canonical import rounded
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    Da3Error,
    ExistsError,
    LinkError,
)
from toolchain.core.files import is_folder, write_atomic
from toolchain.export.check import candidates, parity
from toolchain.export.check.parity import ParityReport
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves
from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe import Recipe, dump
from toolchain.training.adapt.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class LinkedDomain:
    """A split domain and the bytes of its linked graphs.

    ``rates``: calibrated open rate per site, by which ``static`` resolved its gates. ``patch``:
    what the domain has in place of tensors of the backbone.
    """

    halves: PackedHalves
    graphs: Mapping[Linkage, bytes]
    rates: Mapping[str, float]
    patch: Patched | None = None

    @property
    def graph_digest(self) -> str:
        """Digest of ``swap-if``, which kits name as what they were made from."""
        return digest.sha256(self.graphs[SWAP_IF])


def link_domain(
    halves: PackedHalves, checkpoint: Checkpoint, patch: Patched | None = None
) -> LinkedDomain:
    """Link every shipped flavour.

    Raises LinkError naming the block that cannot be linked, or what no device takes.
    """
    # Rounded as in the manifest, so that linking anew from a bundle gives the same graphs.
    calibrated = checkpoint.info.metrics.gate_rates
    rates = {site: rounded(rate) for site, rate in calibrated.items()}
    graphs = {linkage: store.to_bytes(link(halves, linkage, rates=rates)) for linkage in SHIPPED}
    _require_taken(halves.backbone_graph, "backbone.onnx", (WEIGHTS_FILE,))
    _require_taken(halves.domain_graph, "domain.onnx", (SLOTS_FILE,))
    for linkage, graph in graphs.items():
        _require_taken(graph, linkage.file, graph_files(linkage))
    return LinkedDomain(halves, graphs, rates, patch)


def _require_taken(graph: bytes, what: str, files: Sequence[str]) -> None:
    """Raise LinkError for a graph that a device would refuse (:mod:`toolchain.bundle.graphs`)."""
    try:
        require_graph(graph, what, files=files)
    except BundleError as err:
        raise LinkError(
            f"no device would take this net: {err.message}",
            fix="compute that outside the net, or with layers that export to plain operators; if "
            "it is a plain operator, report it",
        ) from err


def write_graphs(linked: LinkedDomain, folder: Path) -> None:
    """Write every graph into ``folder``, beside its tensors, and let onnx.checker look at it.

    The weights are those that the domain runs on: patched where it has a patch. Raises GraphError
    for a graph that onnx.checker refuses, StorageError.
    """
    halves, patch = linked.halves, linked.patch
    weights = halves.weights_data if patch is None else patch.weights
    write_atomic(folder / WEIGHTS_FILE, weights)
    write_atomic(folder / SLOTS_FILE, halves.slots_data)
    files = {
        "backbone.onnx": halves.backbone_graph,
        "domain.onnx": halves.domain_graph,
        **{linkage.file: graph for linkage, graph in linked.graphs.items()},
    }
    for name, graph in files.items():
        write_atomic(folder / name, graph)
        store.check(folder / name)


def compare(
    linked: LinkedDomain,
    cases: Golden,
    preprocess: Preprocessing,
    folder: Path,
    *,
    linkages: Sequence[Linkage] = SHIPPED,
    staged: bool = True,
    threads: int | None = None,
    tolerance: float = parity.TOLERANCE,
) -> ParityReport:
    """Compare the graphs of ``linkages``, and the ``staged`` segments, with the reference.

    ``folder`` holds the backbone's weights. Raises ParityError unless all agree.
    """
    slots = load_safetensors(linked.halves.slots_data)
    tested = [
        candidates.shipped(
            linkage,
            linked.graphs[linkage],
            folder,
            slots,
            tapped=candidates.tapped(linked.halves, linkage, linked.rates, folder, slots),
        )
        for linkage in linkages
    ]
    if staged:
        tested.append(candidates.staged(linked.halves, folder))
    return parity.compare(
        cases, tested, slots, preprocess, tolerance=tolerance, threads=threads
    ).require()


def write_artefact(
    folder: Path, manifest: BackboneManifest, halves: PackedHalves, *, replace: bool = False
) -> tuple[BackboneArtefact, bool]:
    """Return the backbone's artefact in ``folder``, and whether it was there before.

    It is written if it was not there. ``replace``: write over an artefact with another graph.
    Raises BackboneMismatchError for such an artefact unless ``replace``, BundleError for a damaged
    one, StorageError.
    """
    graph, weights = halves.backbone_graph, halves.weights_data
    try:
        return bundle.write_backbone(folder, manifest, graph=graph, weights=weights), False
    except ExistsError:
        # There before, or put there this moment by another export.
        path = folder / bundle.artefact_name(
            manifest.name, manifest.input.size, manifest.weights_digest
        )
        artefact = bundle.open_backbone(path)
    if artefact.manifest.graph_digest == manifest.graph_digest:
        return artefact, True
    if replace:
        written = bundle.write_backbone(
            folder, manifest, graph=graph, weights=weights, overwrite=True
        )
        return written, False
    raise _another_version(path, manifest, artefact.manifest)


def refuse_other_artefact(folder: Path, manifest: BackboneManifest) -> None:
    """Raise early what :func:`write_artefact` would raise in the end for another graph.

    It reads the manifest that is there and hashes no weights. Whatever else is wrong shows later.
    """
    name = bundle.artefact_name(manifest.name, manifest.input.size, manifest.weights_digest)
    path = folder / name
    if not is_folder(path):
        return
    try:
        present, _ = ARTEFACT.read_manifest(path)
    except Da3Error:
        return
    if present.graph_digest != manifest.graph_digest:
        raise _another_version(path, manifest, present)


def _another_version(
    path: Path, manifest: BackboneManifest, present: BackboneManifest
) -> BackboneMismatchError:
    return BackboneMismatchError(
        f"{path} was exported by another version: expected the graph "
        f"{manifest.graph_digest}, got {present.graph_digest}",
        fix="export into another folder, and its other domains again, or remove it",
    )


def payloads(
    linked: LinkedDomain, golden: Golden, recipe: Recipe, checkpoint_info: bytes
) -> list[Payload]:
    """Return the files of the domain's bundle.

    ``checkpoint_info``: the bytes of the checkpoint's JSON file.
    """
    files = [
        Payload("domain", "domain.onnx", linked.halves.domain_graph),
        Payload("slots", SLOTS_FILE, linked.halves.slots_data),
        Payload("golden", "golden.safetensors", golden.to_bytes()),
        Payload("recipe", "recipe.yaml", dump(recipe.without_paths()).encode()),
        Payload("training", "training.json", checkpoint_info),
    ]
    files += [Payload(linkage.role, linkage.file, g) for linkage, g in linked.graphs.items()]
    if linked.patch is not None:
        files.append(Payload("patch", PATCH_NAME, linked.patch.data))
    return files
