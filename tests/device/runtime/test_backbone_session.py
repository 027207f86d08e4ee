"""Sessions: which releases run on them, and graphs, slots and weights that lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import altered
from tests.support.drawn import same, tensor
from tests.support.exported import Fleet
from toolchain import bundle
from toolchain.bundle.release import Release, read_release
from toolchain.core.errors import BackboneMismatchError, BundleError, GraphError
from toolchain.device.runtime.backbone_session import BackboneSession
from toolchain.device.runtime.ort.backbone import VerifiedBackbone, make_session, open_verified

NAMES = ("first", "next", "digits", "da2", "head", "wide", "every")
# Which sessions take which domains: those of equal options, whatever their class counts.
ALIKE = {"first", "next", "digits"}
TAKES = {name: ALIKE if name in ALIKE else {name} for name in NAMES}
FORMS = ("swap-if", "swap-rows")


class Bench:
    """Releases and engines of the fleet, each made once."""

    def __init__(self, fleet: Fleet, backbone: VerifiedBackbone) -> None:
        self.fleet, self.backbone = fleet, backbone
        self._engines: dict[tuple[str, str], BackboneSession] = {}

    def release(self, name: str) -> Release:
        return read_release(bundle.open_bundle(self.fleet[name].bundle))

    def engine(self, name: str, graph: str = "swap-if") -> BackboneSession:
        if (name, graph) not in self._engines:
            self._engines[name, graph] = self.make(self.release(name), graph)
        return self._engines[name, graph]

    def make(self, release: Release, graph: str = "swap-if") -> BackboneSession:
        made = make_session(
            self.backbone, release, release.graph(graph), number=0, threads=1, provider="cpu"
        )
        made.bind(release)
        return made


@pytest.fixture(scope="module")
def bench(fleet: Fleet, artefact: Path) -> Bench:
    return Bench(fleet, open_verified(artefact))


def test_which_domains_a_session_takes(bench: Bench) -> None:
    """By methods, options and class counts; what does not fit says what is another."""
    for host in NAMES:
        misfits = {guest: bench.engine(host).misfits(bench.release(guest)) for guest in NAMES}
        assert {guest for guest, lines in misfits.items() if not lines} == TAKES[host], host
        for lines in misfits.values():
            assert all(line.startswith(("block0", "head.", "adaptor option")) for line in lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from([(host, guest) for host in NAMES for guest in sorted(TAKES[host])]),
    st.sampled_from(FORMS),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_a_domain_answers_on_any_session_that_takes_it_as_on_its_own(
    bench: Bench, pair: tuple[str, str], form: str, count: int, seed: int
) -> None:
    """Law: to the last bit, as it is the very graph."""
    host, guest = pair
    release, images = bench.release(guest), tensor(count, seed)
    own, other = bench.engine(guest, form), bench.engine(host, form)
    mine = own.run(images, own.bind(release))
    answer = other.run(images, other.bind(release))
    assert answer.logits.shape == (count, len(release.classes))
    assert answer.gates.shape == (count, len(release.gates))
    assert same(answer.logits, mine.logits)
    assert same(answer.gates, mine.gates)


@pytest.mark.parametrize("edit", [altered.ignored_slot, altered.endless])
def test_equal_slots_of_another_graph_do_not_fit(
    bench: Bench, tmp_path: Path, edit: altered.Edit
) -> None:
    """Attack: a bundle whose graph has all slots of a good one's, and computes something else."""
    path = altered.with_graph(bench.fleet["next"], tmp_path, edit)
    other = read_release(bundle.open_bundle(path))
    (line,) = bench.engine("first").misfits(other)
    assert line == "its linked graph is another one, though its slots are alike"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("head.weight", lambda a: a[:, :-1], "expected float32"),
        ("block00.gate.bias", lambda a: a.astype(np.float64), "got float64"),
        ("block00.adaptor.expand.bias", lambda a: a[None], "got float32"),
        ("head.bias", lambda _: None, "got none"),
        ("head.more", lambda _: np.zeros(1, np.float32), "expected no such slot"),
    ],
)
def test_slots_that_are_not_those_of_the_releases_own_graph_are_refused(
    bench: Bench, name: str, change: Callable[[Any], Any], told: str
) -> None:
    """Also on a session that is there already, where nothing is made anew."""
    release = bench.release("first")
    slots = {**release.slots, name: change(release.slots.get(name))}
    slots = {slot: array for slot, array in slots.items() if array is not None}
    with pytest.raises(BundleError, match=rf"its own graph: {name}: .*{told}"):
        bench.engine("first").bind(replace(release, slots=slots))


def test_a_head_of_another_class_count_than_the_manifest_is_told_when_it_answers(
    bench: Bench,
) -> None:
    """The graph leaves the class count open, so only the answer tells."""
    release = bench.release("first")
    slots = {n: a[:5] if n.startswith("head.") else a for n, a in release.slots.items()}
    host = bench.engine("first")
    with pytest.raises(GraphError, match=r"expected logits \[2, 8\] and gates \[2, 2\]"):
        host.run(tensor(2), host.bind(replace(release, slots=slots)))


def test_a_static_session_is_one_domains_own(bench: Bench) -> None:
    own = bench.engine("first", "static-if")
    release = bench.release("first")
    assert own.misfits(bench.release("next")) == ("a static model is one domain's own",)
    assert own.misfits(release) == ()
    swap = bench.engine("first")
    images = tensor(3)
    mine, theirs = own.run(images, own.bind(release)), swap.run(images, swap.bind(release))
    assert np.allclose(mine.logits, theirs.logits, atol=1e-4)
    assert np.array_equal(mine.gates >= 0, theirs.gates >= 0)


def test_a_gate_that_a_static_model_has_resolved_is_told_as_what_it_is(bench: Bench) -> None:
    release = bench.release("always")
    assert release.resolved() == {"block00": True}
    engine = bench.engine("always", "static-if")
    gates = engine.run(tensor(4), engine.bind(release)).gates
    assert gates.shape == (4, 2)
    assert (gates[:, 0] == np.inf).all()
    assert np.isfinite(gates[:, 1]).all()


REFUSED: list[tuple[altered.Edit, str]] = [
    (altered.rename_image, "expected image to logits"),
    (altered.rename_logits, "expected image to logits"),
    (altered.narrow_slot, "cannot load it|not those of its own graph"),
    (altered.other_dtype, "cannot load it|not those of its own graph"),
    (altered.another_slot, r"head\.scale: expected float32 \[1\], got none"),
    (altered.constant_slot, r"head\.bias: expected no such slot"),
]


@pytest.mark.parametrize(("edit", "told"), REFUSED, ids=[edit.__name__ for edit, _ in REFUSED])
def test_a_graph_that_lies_about_its_interface_is_refused(
    bench: Bench, tmp_path: Path, edit: altered.Edit, told: str
) -> None:
    path = altered.with_graph(bench.fleet["first"], tmp_path, edit)
    with pytest.raises(BundleError, match=told):
        bench.make(read_release(bundle.open_bundle(path)))


@pytest.mark.parametrize("edit", [altered.drop_gates, altered.fewer_gates, altered.fewer_logits])
def test_a_graph_that_tells_less_than_it_should_is_refused_when_it_answers(
    bench: Bench, tmp_path: Path, edit: altered.Edit
) -> None:
    path = altered.with_graph(bench.fleet["first"], tmp_path, edit)
    release = read_release(bundle.open_bundle(path))
    made = bench.make(release)
    with pytest.raises(GraphError, match=r"expected logits \[1, 8\] and gates \[1, 2\], got"):
        made.run(tensor(1), made.bind(release))


def test_a_graph_that_is_none_is_refused(bench: Bench, tmp_path: Path) -> None:
    def nothing(graph: onnx.GraphProto) -> None:
        graph.Clear()

    path = altered.with_graph(bench.fleet["first"], tmp_path, nothing)
    with pytest.raises(BundleError):
        bench.make(read_release(bundle.open_bundle(path)))


def copied(artefact: Path, folder: Path) -> Path:
    path = folder / artefact.name
    shutil.copytree(artefact, path)
    return path


def exchange(path: Path) -> None:
    """Put another file in the place of the weights, of the same size and time."""
    weights = path / "weights.safetensors"
    status = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    other = path / "other"
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(weights)


def test_weights_exchanged_after_they_were_verified_are_refused(
    bench: Bench, artefact: Path, tmp_path: Path
) -> None:
    path = copied(artefact, tmp_path)
    backbone = open_verified(path)
    release = bench.release("first")
    exchange(path)
    with pytest.raises(BackboneMismatchError, match="was changed after it was verified"):
        make_session(
            backbone, release, release.graph("swap-if"), number=0, threads=1, provider="cpu"
        )
    with pytest.raises(BundleError):
        open_verified(path)


def test_weights_removed_after_they_were_verified_are_told(
    bench: Bench, artefact: Path, tmp_path: Path
) -> None:
    path = copied(artefact, tmp_path)
    backbone = open_verified(path)
    release = bench.release("first")
    (path / "weights.safetensors").unlink()
    with pytest.raises((BundleError, BackboneMismatchError)):
        make_session(
            backbone, release, release.graph("swap-if"), number=0, threads=1, provider="cpu"
        )


def test_weights_exchanged_right_after_hashing_are_refused(
    bench: Bench, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: the file is exchanged when its digest is known and its identity not yet."""
    path = copied(artefact, tmp_path)
    genuine = bundle.open_backbone

    def then_exchanged(folder: Path) -> Any:
        opened = genuine(folder)
        exchange(path)
        return opened

    monkeypatch.setattr("toolchain.device.runtime.ort.backbone.open_backbone", then_exchanged)
    backbone = open_verified(path)
    with pytest.raises(BackboneMismatchError, match="was changed"):
        backbone.require_unchanged()


def test_threads_of_one_operator_change_answers_by_rounding_alone(bench: Bench) -> None:
    release = bench.release("first")
    images = tensor(3)
    one = bench.engine("first")
    two = make_session(
        bench.backbone, release, release.graph("swap-if"), number=0, threads=2, provider="cpu"
    )
    answer = one.run(images, one.bind(release)).logits
    assert np.allclose(answer, two.run(images, two.bind(release)).logits, atol=1e-4)
    assert same(answer, one.run(images, one.bind(release)).logits)
    assert one.cost.seconds > 0
