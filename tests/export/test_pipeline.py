"""The pipeline: a checked bundle, or nothing at all in the destination."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image
from safetensors.numpy import load, save

from tests.support.exported import Domain, Exported, Fleet, make_domain
from tests.support.toy_export import invoke
from toolchain import bundle
from toolchain.bundle.golden import golden_of
from toolchain.bundle.linkage import SHIPPED, Linkage
from toolchain.core import digest
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import (
    BackboneMismatchError,
    CheckpointError,
    ExistsError,
    ParityError,
    StorageError,
    UsageError,
)
from toolchain.device.boards.target import find
from toolchain.export import linked, pipeline
from toolchain.export.check.bundles import check_bundle
from toolchain.export.emit.models import KitOrder
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.pipeline import export
from toolchain.export.refusals import refuse_existing
from toolchain.recipe import DataSpec, dump
from toolchain.training.adapt import checkpoint as checkpoints


def run(exported: Exported, dist: Path, **changes: Any) -> pipeline.ExportReport:
    """Export the session's domain again, structures from its cache."""
    domain: Domain = changes.pop("domain", exported.domain)
    options = {"checkpoint": domain.checkpoint, "cache": exported.cache, **changes}
    return export(domain.recipe, dist=dist, **options)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, hidden ones included."""
    return {
        str(path.relative_to(folder)): digest.sha256(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_report_tells_what_was_made(exported: Exported) -> None:
    report = exported.report
    assert report.bundle.name == "toy_chirps.da3b"
    assert report.bundle.stat().st_size == report.bundle_bytes
    assert report.parity.passed
    assert not report.backbone_reused
    assert not report.structure_cached
    steps = ["restore", "data", "split", "reference", "link", "check", "pack"]
    assert list(report.seconds) == steps
    opened = bundle.open_bundle(report.bundle)
    assert opened.manifest == report.manifest
    graphs = {linkage.file for linkage in SHIPPED}
    rest = {
        "domain.onnx",
        "slots.safetensors",
        "golden.safetensors",
        "recipe.yaml",
        "training.json",
    }
    assert set(opened.names()) == graphs | rest


def test_the_manifest_agrees_with_the_checkpoint(exported: Exported) -> None:
    manifest, checkpoint = exported.report.manifest, checkpoints.read(exported.domain.checkpoint)
    assert manifest.backbone.weights_digest == checkpoint.info.backbone.weights_digest
    assert manifest.classes == checkpoint.info.classes
    assert {slot.name for slot in manifest.adaptor.slots} == set(checkpoint.tensors)
    rates = {b.name: b.rate for b in manifest.gates.blocks if b.rate is not None}
    assert set(rates) == set(checkpoint.info.metrics.gate_rates)
    assert all(0 < rate < 1 for rate in rates.values())
    assert manifest.gates.executed_share == pytest.approx(
        checkpoint.info.metrics.executed_share, 1e-5
    )
    slots = load(bundle.open_bundle(exported.bundle).blob("slots.safetensors"))
    assert all(np.array_equal(slots[name], array) for name, array in checkpoint.tensors.items())


def test_two_exports_give_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    """Law: the same checkpoint gives the same bundle and backbone, from the cache or without."""
    expected = digest.sha256(exported.bundle.read_bytes())
    for name, cache in (("hit", exported.cache), ("miss", None)):
        report = run(exported, tmp_path / name, cache=cache)
        assert report.structure_cached is (name == "hit")
        assert digest.sha256(report.bundle.read_bytes()) == expected
        assert contents(report.backbone) == contents(exported.backbone)


def test_progress_is_told_and_nothing_printed(
    exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    phases: list[str] = []
    run(exported, tmp_path, notify=phases.append)
    assert phases == list(exported.report.seconds)
    assert capfd.readouterr() == ("", "")


def test_a_second_export_reuses_the_backbone(exported: Exported, tmp_path: Path) -> None:
    first = run(exported, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in first.backbone.iterdir()}
    second = run(exported, tmp_path, overwrite=True)
    assert (first.backbone_reused, second.backbone_reused) == (False, True)
    assert {p: p.stat().st_mtime_ns for p in second.backbone.iterdir()} == before


def test_an_existing_destination_is_refused_before_any_work(
    exported: Exported, tmp_path: Path
) -> None:
    target = tmp_path / "toy_chirps.da3b"
    target.write_bytes(b"mine")
    phases: list[str] = []
    with pytest.raises(ExistsError, match=r"toy_chirps\.da3b exists[\s\S]*--overwrite"):
        run(exported, tmp_path, notify=phases.append)
    assert phases == []
    assert contents(tmp_path) == {"toy_chirps.da3b": digest.sha256(b"mine")}
    run(exported, tmp_path, overwrite=True)
    assert check_bundle(target).report.passed


def test_a_parity_failure_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: a linker that draws a wrong head is caught, and nothing appears."""

    def wrong(halves: Halves, linkage: Linkage, **options: Any) -> ir.Model:
        model = link(halves, linkage, **options)
        head = next(n for n in model.graph if n.op_type == "Gemm")
        head.attributes["alpha"] = ir.AttrFloat32("alpha", 0.9)
        return model

    monkeypatch.setattr(linked, "link", wrong)
    dist = tmp_path / "dist"
    with pytest.raises(ParityError, match="parity failed") as caught:
        run(exported, dist)
    assert caught.value.exit_code == 3
    assert not dist.exists()


def test_an_impossible_tolerance_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        run(exported, tmp_path / "dist", tolerance=1e-30)
    assert not (tmp_path / "dist").exists()


def edited(domain: Domain, folder: Path, edit: Any) -> Path:
    """The checkpoint with edited tensors, its JSON naming the new digest."""
    place = folder / "checkpoint"
    shutil.copytree(domain.checkpoint, place)
    path = place / checkpoints.TENSORS_FILE
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = {name: array.copy() for name, array in load(data).items()}
    edit(tensors)
    path.write_bytes(save(tensors, header["__metadata__"]))
    info = json.loads((place / checkpoints.INFO_FILE).read_bytes())
    info["tensors_sha256"] = digest.sha256(path.read_bytes())
    (place / checkpoints.INFO_FILE).write_bytes(canonical_json(info))
    return place


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(
    exported: Exported, tmp_path: Path, value: Any
) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        tensors["block00.adaptor.expand.weight"][0, 0] = value

    place = edited(exported.domain, tmp_path, edit)
    message = r"not finite \(NaN or Inf\): block00\.adaptor\.expand\.weight"
    with pytest.raises(CheckpointError, match=message):
        run(exported, tmp_path / "dist", checkpoint=place)
    assert not (tmp_path / "dist").exists()


def test_a_checkpoint_of_another_backbone_shows_both_digests(
    exported: Exported, tmp_path: Path
) -> None:
    domain = exported.domain
    other = make_domain(tmp_path, weights=7)
    recipe = dataclasses.replace(domain.recipe, folder=other.recipe.folder)
    mine, theirs = (checkpoints.read(d.checkpoint).info.backbone for d in (domain, other))
    with pytest.raises(CheckpointError) as caught:
        export(recipe, checkpoint=domain.checkpoint, dist=tmp_path / "dist")
    assert mine.weights_digest in str(caught.value)
    assert theirs.weights_digest in str(caught.value)
    assert not (tmp_path / "dist").exists()


def test_a_checkpoint_of_another_recipe_is_refused(exported: Exported, tmp_path: Path) -> None:
    """The reference comes from the checkpoint, so parity could not tell: the recipe must agree."""
    recipe = dataclasses.replace(exported.domain.recipe, domain="other", method="da2")
    with pytest.raises(CheckpointError, match=r"domain: the recipe says other[\s\S]*method: "):
        export(
            recipe,
            checkpoint=exported.domain.checkpoint,
            dist=tmp_path / "dist",
            cache=exported.cache,
        )
    assert not (tmp_path / "dist").exists()


def test_an_artefact_of_another_export_is_not_mixed_in(exported: Exported, tmp_path: Path) -> None:
    """Same weights, another graph beside: the export stops instead of pairing the two."""
    steps: list[str] = []
    artefact = bundle.open_backbone(exported.backbone)
    graph = store.from_bytes(artefact.graph_path.read_bytes(), what="backbone")
    graph.producer_version = "another"
    weights = artefact.weights_path.read_bytes()
    bundle.write_backbone(tmp_path, artefact.manifest, graph=store.to_bytes(graph), weights=weights)
    with pytest.raises(BackboneMismatchError, match=r"another version[\s\S]*sha256:[\s\S]*sha256:"):
        run(exported, tmp_path, notify=steps.append)
    assert steps[-1] == "split"  # not after minutes of comparing
    assert not (tmp_path / "toy_chirps.da3b").exists()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond the limit: what a full disk looks like to a writer."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_full_disk_leaves_nothing_of_the_bundle(
    exported: Exported, tmp_path: Path, share: Any
) -> None:
    """Law: wherever space ends, the error says so and no part of the bundle is left."""
    dist = tmp_path / "dist"
    size = int(share * exported.bundle.stat().st_size)
    with (
        file_size_limit(size),
        pytest.raises(StorageError, match=r"cannot write|No space|too large"),
    ):
        run(exported, dist)
    left = contents(dist) if dist.exists() else {}
    assert not any("toy_chirps" in name or "partial" in name for name in left), left


@pytest.mark.parametrize("step", ["write_backbone", "pack"])
def test_a_full_disk_while_packing_leaves_whole_artefacts_only(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The backbone is an artefact of its own: whole and verified, or not there."""
    real = getattr(bundle, step)

    def short(*args: Any, **kwargs: Any) -> Any:
        with file_size_limit(4096):
            return real(*args, **kwargs)

    monkeypatch.setattr(bundle, step, short)
    with pytest.raises(StorageError, match="cannot write"):
        run(exported, tmp_path)
    left = [] if step == "write_backbone" else [exported.backbone.name]
    assert [p.name for p in tmp_path.iterdir()] == left
    assert all(bundle.open_backbone(tmp_path / name) for name in left)


def test_a_destination_that_is_a_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "dist").write_bytes(b"mine")
    with pytest.raises(StorageError):
        run(exported, tmp_path / "dist")
    assert (tmp_path / "dist").read_bytes() == b"mine"


def test_a_cache_that_is_a_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"mine")
    with pytest.raises(StorageError, match="cache folder"):
        run(exported, tmp_path / "dist", cache=tmp_path / "cache")
    assert not (tmp_path / "dist").exists()


def test_a_crowded_cache_changes_nothing(exported: Exported, tmp_path: Path) -> None:
    """Law: the cache is an optimisation: other entries and stray files in it do no harm."""
    cache = tmp_path / "cache"
    shutil.copytree(exported.cache, cache)
    (cache / "stray.txt").write_text("mine")
    (cache / "split-000000000000").mkdir()
    report = run(exported, tmp_path / "dist", cache=cache)
    assert report.structure_cached
    assert report.bundle.read_bytes() == exported.bundle.read_bytes()


@pytest.mark.parametrize("method", ["da2", "head"])
def test_domains_without_gates_export(exported: Exported, tmp_path: Path, method: str) -> None:
    domain = make_domain(tmp_path, name=f"toy_{method}", method=method, seed=2)
    report = run(exported, tmp_path / "dist", domain=domain)
    assert report.parity.passed
    assert report.manifest.selftest.gate_states == {}
    assert report.manifest.gates.executed_share == 1.0
    assert check_bundle(report.bundle).relinked == ("swap-if", "swap-rows", "static-if")
    assert contents(report.backbone) == contents(exported.backbone), "one backbone, any method"


def test_a_gate_that_never_closes_is_forced_and_resolved(
    exported: Exported, tmp_path: Path
) -> None:
    """Data never closes the gate: golden data force it, and the static graph has no `If` for it."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors["block00.gate.bias"] += 500

    place = edited(exported.domain, tmp_path, edit)
    info = json.loads((place / checkpoints.INFO_FILE).read_bytes())
    info["metrics"]["gate_rates"]["block00"] = 1.0
    (place / checkpoints.INFO_FILE).write_bytes(canonical_json(info))
    report = run(exported, tmp_path / "dist", checkpoint=place)
    assert report.parity.forced == 1
    assert report.manifest.selftest.gate_states["block00"].forced
    assert any("static-if: 1 forced cases" in note for note in report.parity.notes)
    opened = bundle.open_bundle(report.bundle)
    graph = store.from_bytes(opened.blob("static-if.onnx"), what="static").graph
    assert [n.name for n in graph if n.op_type == "If"] == ["out.block02"]
    assert check_bundle(report.bundle).report.passed


def test_a_gate_that_a_golden_case_contradicts_is_not_resolved(
    exported: Exported, tmp_path: Path
) -> None:
    """Training pictures never closed a gate, a golden one does: the static graph keeps its `If`."""
    place = edited(exported.domain, tmp_path, lambda _: None)
    info = json.loads((place / checkpoints.INFO_FILE).read_bytes())
    info["metrics"] |= {"gate_rates": {"block00": 1.0, "block02": 0.0}, "gate_pictures": 100}
    (place / checkpoints.INFO_FILE).write_bytes(canonical_json(info))
    report = run(exported, tmp_path / "dist", checkpoint=place)
    rates = {b.name: b.rate for b in report.manifest.gates.blocks if b.rate is not None}
    assert 0.9 < rates["block00"] < 1
    assert 0 < rates["block02"] < 0.1
    graph = store.from_bytes(
        bundle.open_bundle(report.bundle).blob("static-if.onnx"), what="static"
    ).graph
    assert len([n for n in graph if n.op_type == "If"]) == 2
    assert check_bundle(report.bundle).relinked == ("swap-if", "swap-rows", "static-if")


def test_existing_paths_are_refused(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "free")
    with pytest.raises(ExistsError, match=r"exists[\s\S]*--overwrite"):
        refuse_existing(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "counts"),
    [
        ("tuned", "whole", (16, 0, 0, 16)),
        ("masked", "masked", (8, 8, 0, 16)),
        ("normed", "tensors", (14, 0, 7, 16)),
    ],
)
def test_a_domain_that_changes_the_backbone_is_a_patch_on_the_frozen_one(
    fleet: Fleet, name: str, kind: str, counts: tuple[int, int, int, int]
) -> None:
    """The artefact beside it is that of every other domain, and so are the digests."""
    report = fleet[name].report
    manifest, patch = report.manifest, report.manifest.patch
    assert patch is not None
    assert patch.kind == kind
    assert (patch.tensors, patch.masks, patch.scaled, patch.of) == counts
    assert manifest.backbone == fleet["first"].report.manifest.backbone
    assert contents(report.backbone) == contents(fleet["first"].backbone)
    assert report.parity.passed
    opened = bundle.open_bundle(report.bundle)
    assert opened.names("patch") == ("patch.safetensors",)
    assert {slot.name for slot in manifest.adaptor.slots} == {"head.weight", "head.bias"}
    base = bundle.open_backbone(report.backbone).weights()
    weights = bundle.apply_patch(base, patch, opened.blob("patch.safetensors"))
    assert all(np.isfinite(array).all() for array in load(weights).values())
    whole = {n: (a.size, len(a)) for n, a in load(base).items() if a.ndim}
    carried = {n: a.size for n, a in load(opened.blob("patch.safetensors")).items()}
    for tensor, count in carried.items():
        size, channels = whole[tensor]
        assert count == {"tuned": size, "masked": -(-size // 8), "normed": channels}[name]


def test_a_patched_export_gives_the_same_bytes_and_says_what_it_carries(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Law: the same checkpoint gives the same bundle; the command tells of the patch."""
    domain = fleet["masked"].domain
    assert domain.recipe.folder is not None
    recipe = domain.recipe.folder / f"{domain.recipe.domain}.yaml"
    recipe.write_text(dump(domain.recipe), encoding="utf-8")
    words = {"--recipe": recipe, "--checkpoint": domain.checkpoint, "--dist": tmp_path / "dist"}
    options = [str(word) for pair in words.items() for word in pair]
    result = invoke("export", *options, "--cache", str(fleet["masked"].cache))
    assert result.exit_code == 0, result.stderr
    line = "piggyback masks 8 of 16 tensors of the backbone: the bundle carries 1 bit per weight ("
    assert line in result.stdout
    assert "the device keeps a session of its own" in result.stdout
    name = fleet["masked"].bundle.name
    assert (tmp_path / "dist" / name).read_bytes() == fleet["masked"].bundle.read_bytes()


def test_no_kit_is_made_for_a_domain_that_changes_the_backbone(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Engines share the frozen backbone; it is said before anything is captured."""
    domain, phases = fleet["tuned"].domain, list[str]()
    order = KitOrder(find("orin-nano-jp6.2"), "fp16", ("swap",), recalibrate=False)
    with pytest.raises(UsageError, match="engines share the frozen one") as caught:
        export(
            domain.recipe,
            checkpoint=domain.checkpoint,
            dist=tmp_path / "dist",
            orders=[order],
            notify=phases.append,
        )
    assert "da3, da2 or head" in caught.value.fix
    assert phases == ["restore"]
    assert not (tmp_path / "dist").exists()


def test_two_picture_sizes_on_one_backbone_lie_side_by_side(
    exported: Exported, tmp_path: Path
) -> None:
    """The graph depends on the size: each has its own artefact, and both bundles pass a check."""
    small = exported.domain
    larger = dataclasses.replace(small.recipe.preprocess, size=16, resize=16)
    (tmp_path / "larger").mkdir()
    domain = make_domain(tmp_path / "larger", name="larger", changes={"preprocess": larger})
    dist = tmp_path / "dist"
    reports = [run(exported, dist), run(exported, dist, domain=domain)]
    names = [report.backbone.name for report in reports]
    assert [name.split("-")[2] for name in names] == ["12px", "16px"]
    assert len({report.manifest.backbone.weights_digest for report in reports}) == 1
    for report in reports:
        assert check_bundle(report.bundle).backbone == report.backbone


def people(folder: Path) -> Path:
    """A user's own folder: photographs of two people, in colours of no drawing."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 12)):
        for name in ("Alice", "Bob"):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(count):
                picture = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(picture).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def private(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A domain of a user's own folder, exported with a kit; its recipe has no key ``golden``."""
    folder = tmp_path_factory.mktemp("private")
    changes = {
        "data": DataSpec("folder", str(people(folder / "patients")), None, None, 1),
        "weights": str(folder / "toy.safetensors"),
        "golden": None,
    }
    domain = make_domain(folder, name="faces", changes=changes)
    order = KitOrder(find("orin-nano-jp6.2"), "fp32", ("swap",), recalibrate=False)
    report = run(exported, folder / "dist", domain=domain, orders=[order])
    return Exported(lambda: domain, report, exported.cache)


def test_nothing_that_is_shipped_names_a_folder_of_the_machine(private: Exported) -> None:
    """Bundle, backbone and kit, byte by byte: no path of the user, of Python, or of the code."""
    folder = private.bundle.parent
    paths = {folder.parent, Path.home(), Path.cwd(), Path(sys.prefix), Path(ir.__file__).parent}
    names = [str(path).encode() for path in paths if path != Path("/")] + [b"patients"]
    shipped = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path.suffix for path in shipped} >= {".da3b", ".onnx", ".safetensors", ".json"}
    leaks = [(path.name, name) for path, data in shipped.items() for name in names if name in data]
    assert leaks == []


def test_no_picture_of_a_users_folder_is_in_the_bundle(private: Exported) -> None:
    """By default golden pictures are drawn, and the bundle passes its check with them."""
    opened = bundle.open_bundle(private.bundle)
    golden = golden_of(opened)
    data = private.domain.data
    own = {p.tobytes() for s in (data.train, data.test) for p in s.batch(range(len(s)))[0]}
    assert not own & {p.tobytes() for p in golden.pixels}
    assert opened.manifest.pictures == "drawn"
    assert int(golden.natural.sum()) == 8
    assert all(state.open and state.closed for state in golden.states().values())
    assert check_bundle(private.bundle).report.passed


def test_pictures_that_the_recipe_asks_for_are_in_the_bundle(
    private: Exported, tmp_path: Path
) -> None:
    """`golden: 3` carries three pictures of the test data: the recipe's owner wants them."""
    domain = private.domain
    chosen = dataclasses.replace(domain, recipe=dataclasses.replace(domain.recipe, golden=3))
    report = run(private, tmp_path, domain=chosen)
    assert report.manifest.pictures == "test"
    golden = golden_of(bundle.open_bundle(report.bundle))
    test = domain.data.test
    own = {p.tobytes() for p in test.batch(range(len(test)))[0]}
    assert {p.tobytes() for p in golden.pixels} <= own
