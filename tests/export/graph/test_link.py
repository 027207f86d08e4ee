"""Linking: every flavour answers as PyTorch does, and skips what a closed gate lets it skip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import cases, toys
from tests.support.cases import Made, close, walk
from toolchain.bundle.golden import shifted
from toolchain.bundle.graphs import graph_files, require_graph
from toolchain.bundle.linkage import FORMS, LINKAGES, STATIC_IF, Form, Linkage
from toolchain.core.errors import GraphError, LinkError
from toolchain.device.runtime.backend import Answer, Runnable
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import (
    BACKBONE,
    CLASSES,
    DIALECT,
    HEAD_SLOTS,
    IMAGE,
    SLOTS_FILE,
    WEIGHTS_FILE,
)
from toolchain.export.graph.split import split
from toolchain.training import attach

GRAPHS = [linkage for linkage in LINKAGES if not linkage.is_segmented]
CLEAR = 1e-3
"""A gate's logit nearer to its threshold may turn by rounding alone."""


def eager(made: Made, images: torch.Tensor, slots: Mapping[str, Any] | None = None) -> Answer:
    """What PyTorch says, with other slots if given; the model is left as it was."""
    before = {n: t.clone() for n, t in made.model.domain.state_dict().items()}
    try:
        if slots is not None:
            state = {n: torch.from_numpy(np.array(v)) for n, v in slots.items()}
            made.model.domain.load_state_dict(state, strict=False)
        with torch.no_grad():
            trace = made.model.trace(images)
    finally:
        made.model.domain.load_state_dict(before)
    assert trace.logits is not None
    gates = [g.numpy() for g in trace.gates.values()]
    none = np.zeros((len(images), 0), np.float32)
    taps = {f"out.{name}": value.numpy() for name, value in trace.results.items()}
    return Answer(trace.logits.numpy(), np.concatenate(gates, 1) if gates else none, taps)


def clear(answer: Answer) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows none of whose gates stands on its threshold."""
    return np.asarray((np.abs(answer.gates) > CLEAR).all(axis=1))


def test_every_flavour_answers_as_pytorch_does(made: Made) -> None:
    """Law: swap == static == staged == eager within tolerance, in every form, at batch 1, 3, 16."""
    flavours = made.flavours()
    for batch in (1, 3, 16):
        images = made.case.images(batch, seed=batch)
        want = eager(made, images)
        rows = clear(want)
        for name, model in flavours.items():
            got = model.run(images.numpy(), made.slots)
            assert got.gates.shape == want.gates.shape, name
            assert close(got.logits[rows], want.logits[rows]), (name, batch)
            assert close(got.gates[rows], want.gates[rows]), (name, batch)
    assert made.case.fresh or not made.halves.gates or mixed(eager(made, made.case.images(16)))


def mixed(answer: Answer) -> bool:
    """Every gate is open for some and closed for others."""
    opened = answer.gates >= 0
    return bool((opened.any(axis=0) & ~opened.all(axis=0)).all())


@pytest.fixture(scope="module")
def runs(plain: Made) -> dict[str, Runnable]:
    """The flavours that take slots, as sessions that live for the module."""
    sessions: dict[str, Runnable] = {form: plain.run(Linkage("swap", form)) for form in FORMS}
    return sessions | {"staged": plain.staged()}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shift=st.tuples(*[st.sampled_from([-1000.0, -0.7, 0.0, 0.4, 1000.0])] * 2),
    batch=st.sampled_from([1, 2, 3, 5, 16]),
    seed=st.integers(0, 5),
)
def test_gates_in_any_state_agree(
    plain: Made, runs: dict[str, Runnable], shift: Any, batch: Any, seed: int
) -> None:
    """Law: whatever the gates' biases, all forms answer as PyTorch does: open, closed and mixed."""
    sites = [name.removeprefix("gate.") for name in plain.halves.gates]
    slots = shifted(plain.slots, sites, np.array(shift, np.float32))
    images = plain.case.images(batch, seed)
    want = eager(plain, images, slots)
    rows = clear(want)
    for name, model in runs.items():
        got = model.run(images.numpy(), slots)
        assert np.array_equal((got.gates >= 0)[rows], (want.gates >= 0)[rows]), name
        assert close(got.logits[rows], want.logits[rows]), name


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(8)), batch=st.integers(1, 8))
def test_a_sample_never_sees_its_neighbours(
    plain: Made, runs: dict[str, Runnable], order: Any, batch: Any
) -> None:
    """Law: a sample's answer is the same alone and in any batch with any neighbours."""
    images = plain.case.images(8, seed=3).numpy()
    chosen = list(order)[:batch]
    for name in ("rows", "staged"):
        alone = np.concatenate(
            [runs[name].run(images[i : i + 1], plain.slots).logits for i in chosen]
        )
        together = runs[name].run(images[chosen], plain.slots).logits
        assert close(together, alone, relative=1e-5), name


def test_a_gate_exactly_at_its_threshold_is_open(plain: Made, runs: dict[str, Runnable]) -> None:
    """The threshold belongs to the open side, everywhere."""
    still = {n: a * 0 if ".gate." in n else a for n, a in plain.slots.items()}
    images = plain.case.images(3, seed=8)
    want = eager(plain, images, still)
    assert (want.gates == 0).all()
    opened = {n: a + 1 if n.endswith(".gate.bias") else a for n, a in still.items()}
    closed = {n: a - 1 if n.endswith(".gate.bias") else a for n, a in still.items()}
    assert close(want.logits, eager(plain, images, opened).logits)
    assert not close(want.logits, eager(plain, images, closed).logits)
    for name, model in runs.items():
        assert close(model.run(images.numpy(), still).logits, want.logits), name


def test_a_closed_gate_hides_an_infinite_block(plain: Made) -> None:
    """A block whose weights overflow does not reach a sample whose gate is closed."""
    slots = shifted(plain.slots, ["block00", "block02"], np.array([-1000, -1000], np.float32))
    weights = store.load_tensors(
        store.from_bytes(plain.halves.backbone_graph, what="backbone"),
        WEIGHTS_FILE,
        plain.halves.weights_data,
    )
    tensors = store.external_tensors(weights)
    wild = {
        n: np.full_like(a, np.inf) if n.startswith("backbone.blocks.0.conv1") else a
        for n, a in tensors.items()
    }
    packed = store.pack_tensors(wild, WEIGHTS_FILE)
    assert len(packed.data) == len(plain.halves.weights_data)
    images = plain.case.images(2, seed=1)
    want = eager(plain, images, slots)
    for form in FORMS:
        folder = plain.folder / f"wild-{form}"
        folder.mkdir(exist_ok=True)
        (folder / WEIGHTS_FILE).write_bytes(packed.data)
        model = LinkedModel(Session(plain.graph(Linkage("swap", form)), folder=folder))
        got = model.run(images.numpy(), slots)
        assert close(got.logits, want.logits), form


@pytest.mark.parametrize("linkage", GRAPHS, ids=lambda one: one.stem)
def test_onnx_checker_passes_and_dialect_is_the_targets(
    made: Made, linkage: Any, tmp_path: Path
) -> None:
    """Every graph that is written passes the full check at the stated opset and IR version."""
    (tmp_path / WEIGHTS_FILE).write_bytes(made.halves.weights_data)
    (tmp_path / SLOTS_FILE).write_bytes(made.halves.slots_data)
    model = link(made.halves, linkage)
    path = tmp_path / f"{linkage.stem}.onnx"
    path.write_bytes(store.to_bytes(model))
    store.check(path)
    dialect = DIALECT
    assert dict(model.graph.opset_imports) == {"": dialect.opset}
    assert model.ir_version == dialect.ir_version
    assert {node.domain for node in walk(model.graph)} <= {""}


def test_a_swap_models_inputs_are_the_picture_and_the_slots(made: Made) -> None:
    """Law: exactly image + slots are inputs, each with its dtype and shape; no slot is constant.

    The head's class count alone is open, so that domains of any count share a graph.
    """
    for form in FORMS:
        graph = link(made.halves, Linkage("swap", form)).graph
        inputs = {v.name: v for v in graph.inputs}
        assert set(inputs) == {IMAGE, *made.halves.slots}
        assert not set(graph.initializers) & set(made.halves.slots)
        for name, array in made.slots.items():
            first: list[int | str] = [CLASSES] if name in HEAD_SLOTS else list(array.shape[:1])
            assert inputs[name].shape == ir.Shape([*first, *array.shape[1:]])
            assert inputs[name].dtype == ir.DataType.FLOAT


def test_a_static_model_takes_only_the_picture(made: Made) -> None:
    for form in FORMS:
        graph = link(made.halves, Linkage("static", form)).graph
        assert [v.name for v in graph.inputs] == [IMAGE]
        assert set(made.halves.slots) <= set(graph.initializers)


@pytest.mark.parametrize("linkage", GRAPHS, ids=lambda one: one.stem)
def test_a_device_takes_what_is_written(made: Made, linkage: Any) -> None:
    """Law: the closed list and limits of bundle/graphs.py hold every graph of every toy."""
    halves = made.halves
    graph = made.graph(linkage)
    summary = require_graph(graph, linkage.file, files=graph_files(linkage))
    assert summary.operators == {n.op_type for n in walk(link(halves, linkage).graph)}
    require_graph(halves.backbone_graph, "backbone.onnx", files=(WEIGHTS_FILE,))
    require_graph(halves.domain_graph, "domain.onnx", files=(SLOTS_FILE,))
    weights, slots = len(halves.weights_data), len(halves.slots_data)
    assert summary.tensor_bytes <= weights + (slots if linkage.folds_domain else 0)


@pytest.mark.parametrize("form", FORMS)
def test_each_gate_is_one_if_and_its_weights_lie_inside(made: Made, form: Form) -> None:
    """If count == gate count; a gated block's weights are in its branch and not around it."""
    model = link(made.halves, Linkage("swap", form))
    ifs = [node for node in walk(model.graph) if node.op_type == "If"]
    assert len(ifs) == len(made.halves.gates)
    outside = {n for n in model.graph.initializers if n.startswith(BACKBONE)}
    for node in ifs:
        then = node.attributes["then_branch"].as_graph()
        other = node.attributes["else_branch"].as_graph()
        inside = {n for n in then.initializers if n.startswith(BACKBONE)}
        assert inside, "an open branch without weights computes nothing"
        assert not inside & outside
        assert not any(n.startswith(BACKBONE) for n in other.initializers)
        assert {n.op_type for n in other} <= {"Add", "Resize", "Transpose", "Reshape"}


def test_rows_gather_and_scatter_once_per_gate(made: Made) -> None:
    nodes = walk(link(made.halves, Linkage("swap", "rows")).graph)
    kinds = [node.op_type for node in nodes]
    gates = len(made.halves.gates)
    assert kinds.count("NonZero") == kinds.count("ScatterND") == gates


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_static_resolves_gates_that_never_change(plain: Made, form: Form, rate: Any) -> None:
    """A gate whose rate is 0 or 1 leaves no control flow, and the answer is that state's."""
    sites = [name.removeprefix("gate.") for name in plain.halves.gates]
    linkage, rates = Linkage("static", form), dict.fromkeys(sites, rate)
    model = link(plain.halves, linkage, rates=rates)
    assert not {"If", "NonZero", "ScatterND"} & {n.op_type for n in walk(model.graph)}
    weights = {n for n in model.graph.initializers if n.startswith("backbone.blocks.0.")}
    assert bool(weights) is (rate == 1.0)
    force = np.full(len(sites), 1000 if rate else -1000, np.float32)
    slots = shifted(plain.slots, sites, force)
    images = plain.case.images(4, seed=7)
    want = eager(plain, images, slots)
    got = plain.run(linkage, rates=rates).run(images.numpy(), {})
    assert close(got.logits, want.logits)


def test_static_keeps_gates_between_the_rates(plain: Made) -> None:
    model = link(plain.halves, STATIC_IF, rates={"block00": 1.0, "block02": 0.999})
    ifs = [n.name for n in walk(model.graph) if n.op_type == "If"]
    assert ifs == ["out.block02"]


def test_swap_never_resolves_a_gate(plain: Made) -> None:
    """Another domain may open what this one keeps closed: rates are static's only."""
    rates = dict.fromkeys(("block00", "block02"), 0.0)
    assert plain.graph(Linkage("swap"), rates=rates) == plain.graph(Linkage("swap"))


def test_taps_give_every_blocks_result(plain: Made) -> None:
    images = plain.case.images(3, seed=4)
    want = eager(plain, images)
    for form in FORMS:
        got = plain.run(Linkage("swap", form), taps=True).run(images.numpy(), plain.slots)
        assert set(got.taps) == set(want.taps) == {"out.block00", "out.block01", "out.block02"}
        assert all(close(got.taps[name], want.taps[name]) for name in want.taps), form


def test_one_swap_graph_serves_another_domain(plain: Made) -> None:
    """Swapping is giving other tensors: a second domain needs no graph of its own."""
    generator = np.random.default_rng(1)
    other = {n: generator.normal(size=a.shape).astype(np.float32) for n, a in plain.slots.items()}
    images = plain.case.images(3, seed=5)
    want = eager(plain, images, other)
    for form in FORMS:
        got = plain.run(Linkage("swap", form)).run(images.numpy(), other)
        assert close(got.logits, want.logits), form


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "batch", "pool": 0}, {"method": "da2", "norm": "group"}, {"method": "head"}],
    ids=["da3", "batch", "da2", "head"],
)
def test_domains_of_equal_options_have_one_swap_graph(options: dict[str, Any]) -> None:
    """Law: no value, name or class count of a domain shows in a graph; so they share a session.

    Each is captured anew, as two people would export them.
    """

    def linked(seed: int, classes: int) -> list[bytes]:
        model = attach(
            toys.backbone("single"), classes=classes, input_shape=(3, 8, 8), rank=4, **options
        )
        halves = split(toys.scrambled(model, seed))
        return [store.to_bytes(link(halves, Linkage("swap", form))) for form in FORMS]

    assert linked(0, classes=7) == linked(1, classes=1)


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_or_misshapen_slot_is_refused(plain: Made, form: Form) -> None:
    """A swap model never runs on a part of a domain."""
    model = plain.run(Linkage("swap", form))
    images = plain.case.images(1).numpy()
    name = "block00.adaptor.reduce.weight"
    without = {n: a for n, a in plain.slots.items() if n != name}
    spoiled = {
        "missing": without,
        "larger": {**plain.slots, name: np.concatenate([plain.slots[name]] * 2)},
        "flat": {**plain.slots, name: plain.slots[name].reshape(-1)},
        "double": {**plain.slots, name: plain.slots[name].astype(np.float64)},
        "whole": {**plain.slots, name: plain.slots[name].astype(np.int32)},
    }
    for kind, slots in spoiled.items():
        with pytest.raises(GraphError, match=r"block00\.adaptor\.reduce\.weight") as caught:
            model.run(images, slots)
        assert "expected the inputs image" in caught.value.fix, kind


def test_linking_is_deterministic(plain: Made) -> None:
    """Law: the same halves and linking give the same bytes, from memory or read back."""
    for linkage in GRAPHS:
        assert plain.graph(linkage) == plain.graph(linkage)
        backbone = store.from_bytes(plain.halves.backbone_graph, what="backbone")
        domain = store.from_bytes(plain.halves.domain_graph, what="domain")
        from toolchain.export.graph.halves import read_halves

        assert store.to_bytes(link(read_halves(backbone, domain), linkage)) == plain.graph(linkage)


def test_a_block_that_reads_a_second_value_has_no_rows_form() -> None:
    """`rows` would need that value's rows gathered as well; the block and the value are named."""
    halves = cases.two_inputs()
    with pytest.raises(LinkError, match=r"block 'blocks\.1' reads '[^']+' besides its input"):
        link(halves, Linkage("swap", "rows"))
    link(halves, Linkage("swap", "if"))
