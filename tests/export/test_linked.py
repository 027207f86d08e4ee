"""What lies between a split and a bundle: linked graphs, comparisons, payloads, the artefact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.exported import Exported
from toolchain import bundle
from toolchain.bundle.golden import golden_of
from toolchain.bundle.linkage import SHIPPED, SWAP_IF
from toolchain.core import digest
from toolchain.core.errors import BackboneMismatchError, ParityError
from toolchain.export.graph.split import PackedHalves, split
from toolchain.export.linked import (
    LinkedDomain,
    compare,
    link_domain,
    payloads,
    write_artefact,
    write_graphs,
)
from toolchain.training.adapt import checkpoint as checkpoints


@pytest.fixture(scope="module")
def linked(exported: Exported) -> LinkedDomain:
    domain = exported.domain
    return link_domain(
        split(domain.model, cache=exported.cache), checkpoints.read(domain.checkpoint)
    )


def test_payloads_are_the_files_of_the_bundle(exported: Exported, linked: LinkedDomain) -> None:
    """Law: whoever goes through these steps packs what the export packed, byte for byte."""
    opened = bundle.open_bundle(exported.bundle)
    info = (exported.domain.checkpoint / checkpoints.INFO_FILE).read_bytes()
    files = payloads(linked, golden_of(opened), exported.domain.recipe, info)
    entries = {(e.role, e.name): opened.blob(e.name) for e in opened.manifest.files}
    assert {(file.role, file.name): file.data for file in files} == entries
    assert set(linked.graphs) == set(SHIPPED)
    assert linked.graph_digest == digest.sha256(opened.blob(SWAP_IF.file))


def test_written_graphs_are_compared_flavour_by_flavour(
    exported: Exported, linked: LinkedDomain, tmp_path: Path
) -> None:
    write_graphs(linked, tmp_path)
    cases = golden_of(bundle.open_bundle(exported.bundle))
    preprocess = exported.domain.recipe.preprocess
    report = compare(linked, cases, preprocess, tmp_path)
    stems = {linkage.stem for linkage in SHIPPED}
    assert {c.flavour for c in report.comparisons} == stems | {"staged"}
    alone = compare(linked, cases, preprocess, tmp_path, linkages=[SWAP_IF], staged=False)
    assert {c.flavour for c in alone.comparisons} == {"swap-if"}
    with pytest.raises(ParityError):
        compare(linked, cases, preprocess, tmp_path, tolerance=1e-30)


def test_an_artefact_is_reused_replaced_or_refused(
    exported: Exported, linked: LinkedDomain, tmp_path: Path
) -> None:
    halves: PackedHalves = linked.halves
    manifest = bundle.open_backbone(exported.backbone).manifest
    other = replace(manifest, graph_digest="sha256:" + "0" * 64)
    first, reused = write_artefact(tmp_path, manifest, halves)
    assert not reused
    assert write_artefact(tmp_path, manifest, halves) == (first, True)
    with pytest.raises(BackboneMismatchError, match="was exported by another version"):
        write_artefact(tmp_path, other, halves)
    again, reused = write_artefact(tmp_path, manifest, halves, replace=True)
    assert (again.manifest, reused) == (first.manifest, True)
