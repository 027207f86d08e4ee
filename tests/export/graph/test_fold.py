"""Folding and merging: the same outputs, and only where it is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import cases
from tests.support.cases import Made, close
from toolchain.core.errors import CaptureError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import split, store
from toolchain.export.graph.builder import GraphBuilder, input_names, value_name
from toolchain.export.graph.fold import fix_reshapes, fold_batchnorm, merge_twins

F32 = ir.DataType.FLOAT


def graph(
    *,
    seed: int = 0,
    bias: bool = False,
    groups: int = 1,
    variance: float = 1.0,
    twice: bool = False,
    owner: str = "backbone.",
    epsilon: float = 1e-5,
) -> ir.Model:
    """Conv, BatchNormalization on ``[N, 4, 5, 5]``; ``twice``: the conv's output is read again."""
    draw = np.random.default_rng(seed)

    def tensor(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        array = draw.uniform(low, high, shape).astype(np.float32)
        return builder.initializer(name, ir.Tensor(array, name=name))

    builder = GraphBuilder("norms", opset=18)
    builder.input("image", F32, ["batch", 4, 5, 5])
    operands = ["image", tensor("backbone.conv.weight", 8, 4 // groups, 3, 3)]
    if bias:
        operands.append(tensor("backbone.conv.bias", 8))
    builder.node("Conv", operands, "y", {"pads": [1, 1, 1, 1], "group": groups})
    norm = [tensor(f"{owner}bn.{n}", 8) for n in ("weight", "bias", "running_mean")]
    norm.append(tensor(f"{owner}bn.running_var", 8, low=variance / 2, high=variance))
    builder.node("BatchNormalization", ["y", *norm], "z", {"epsilon": epsilon})
    result = (
        builder.node("Add", ["y", "z"], "both") if twice else builder.node("Relu", ["z"], "both")
    )
    builder.typed(result, F32, ["batch", 8, 5, 5])
    return builder.model([result], ir_version=10, metadata={})


def shared_kernel() -> ir.Model:
    """Two convolutions with one kernel and one bias, each before a norm of its own."""
    draw = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> str:
        array = draw.uniform(0.5, 1.5, shape).astype(np.float32)
        return builder.initializer(name, ir.Tensor(array, name=name))

    builder = GraphBuilder("shared", opset=18)
    builder.input("image", F32, ["batch", 4, 5, 5])
    value, kernel = "image", [tensor("backbone.a.weight", 4, 4, 3, 3), tensor("backbone.a.bias", 4)]
    for name in ("a", "b", "c"):
        builder.node("Conv", [value, *kernel], f"{name}.y", {"pads": [1, 1, 1, 1]})
        names = ("weight", "bias", "running_mean", "running_var")
        norm = [tensor(f"backbone.{name}.bn.{n}", 4) for n in names]
        value = builder.node("BatchNormalization", [f"{name}.y", *norm], f"{name}.z")
    builder.node("Relu", [value], "both")
    builder.typed("both", F32, ["batch", 4, 5, 5])
    return builder.model(["both"], ir_version=10, metadata={})


def test_convolutions_that_share_a_kernel_get_one_each_for_their_norms() -> None:
    """A block that is used twice, or weights that are tied: ``b.conv = a.conv``."""
    want, model = run(shared_kernel()), shared_kernel()
    assert fold_batchnorm(model) == 3
    assert [n.op_type for n in model.graph] == ["Conv"] * 3 + ["Relu"]
    weights = [input_names(node)[1] for node in model.graph if node.op_type == "Conv"]
    assert weights == [f"backbone.a.weight+bn{number}" for number in ("", 2, 3)]
    assert len(model.graph.initializers) == 6
    assert close(run(model), want)


def run(model: ir.Model, seed: int = 0) -> np.ndarray[Any, Any]:
    image = np.random.default_rng(seed).normal(size=(2, 4, 5, 5)).astype(np.float32)
    outputs = Session(store.to_bytes(model), exact=True).run({"image": image})
    return outputs["both"]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    variance=st.sampled_from([1e-30, 1e-8, 1e-3, 1.0, 1e3]),
    epsilon=st.sampled_from([1e-5, 1e-3]),
)
def test_folding_keeps_the_answer(
    seed: int, bias: Any, groups: Any, variance: Any, epsilon: Any
) -> None:
    """Law: fold(g) answers as g, with a bias or none, grouped or depthwise, at any variance."""
    shape: dict[str, Any] = {"bias": bias, "groups": groups, "variance": variance}
    model = graph(seed=seed, epsilon=epsilon, **shape)
    want = run(model, seed)
    assert fold_batchnorm(model) == 1
    assert kinds(model) == ["Conv", "Relu"]
    assert close(run(model, seed), want, relative=1e-5)


def test_folded_tensors_carry_new_names() -> None:
    """No name lies about its values: what was folded is called so, what is dead is gone."""
    model = graph(bias=True)
    fold_batchnorm(model)
    assert set(model.graph.initializers) == {"backbone.conv.weight+bn", "backbone.conv.bias+bn"}


def test_a_convolution_that_is_read_twice_keeps_its_norm() -> None:
    model = graph(twice=True)
    want = run(model)
    assert fold_batchnorm(model) == 0
    assert kinds(model) == ["Conv", "BatchNormalization", "Add"]
    assert np.array_equal(run(model), want)


def test_a_domains_norm_is_never_folded() -> None:
    """A slot is never read: neither into a kernel of the backbone nor into its own."""
    model = graph(owner="block00.adaptor.")
    before = store.to_bytes(model)
    assert fold_batchnorm(model) == 0
    assert store.to_bytes(model) == before


def test_an_adaptors_batchnorm_stays_a_node_with_its_slots() -> None:
    made = cases.made("preactivation")
    kinds_ = [node.op_type for node in made.halves.domain.graph]
    assert kinds_.count("BatchNormalization") == len(made.halves.adapted)
    assert "block00.adaptor.norm.running_var" in made.halves.slots


def test_norms_without_a_convolution_of_their_own_stay() -> None:
    """Pre-activation: a block's first norm reads the sum before it; the second one is folded."""
    made = cases.made("preactivation")
    left = [n for n in made.halves.backbone.graph if n.op_type == "BatchNormalization"]
    names = {input_names(node)[1] for node in left}
    assert names == {"backbone.blocks.0.bn1.weight", "backbone.blocks.1.bn1.weight"}
    assert not any(
        n.op_type == "BatchNormalization" for n in cases.made("inverted").halves.backbone.graph
    )


def test_a_wrong_fold_is_found_and_the_tensor_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: folding is verified by running both graphs, not believed."""

    def wrong(model: ir.Model) -> int:
        folded = fold_batchnorm(model)
        name = next(n for n in model.graph.initializers if n.endswith("blocks.0.conv1.weight+bn"))
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=name)
        return folded

    monkeypatch.setattr(split, "fold_batchnorm", wrong)
    with pytest.raises(CaptureError, match=r"folding BatchNorm changed 'block\.block00'"):
        split.split(cases.CASES["single"].model())


def test_reshape_targets_become_constants(made: Made) -> None:
    """No node computes a shape from the batch size at run time where -1 says it."""
    assert not any(n.op_type == "Shape" for n in made.halves.backbone.graph)


def test_a_reshape_with_two_free_dimensions_is_left_alone() -> None:
    builder = GraphBuilder("free", opset=18)
    builder.input("image", F32, ["batch", "width"])
    builder.input("shape", ir.DataType.INT64, [2])
    builder.node("Reshape", ["image", "shape"], "y")
    builder.typed("y", F32, ["batch", "width"])
    model = builder.model(["y"], ir_version=10, metadata={})
    assert fix_reshapes(model) == 0


def turned(*, cuts: tuple[str, ...] = ("cut",), perm: tuple[int, ...] = (0, 2, 3, 1)) -> ir.Model:
    """Two transpositions ``cut`` and ``twin`` of ``[N, 4, 5, 5]``, the second with ``perm``."""
    builder = GraphBuilder("twins", opset=18)
    builder.input("image", F32, ["batch", 4, 5, 5])
    builder.node("Transpose", ["image"], "cut", {"perm": [0, 2, 3, 1]})
    builder.node("Transpose", ["image"], "twin", {"perm": list(perm)})
    builder.node("Relu", ["twin"], "both")
    for name in ("both", "cut", "twin"):
        builder.typed(name, F32, ["batch", None, None, None])
    return builder.model(["both", *cuts], ir_version=10, metadata={})


def reads(model: ir.Model, output: str) -> list[str]:
    """Return the names that the node which gives ``output`` reads."""
    node = next(n for n in model.graph if value_name(n.outputs[0]) == output)
    return input_names(node)


def test_who_reads_the_twin_of_a_cut_reads_the_cut() -> None:
    model = turned()
    want = run(model)
    assert merge_twins(model) == 1
    assert reads(model, "both") == ["cut"]
    assert np.array_equal(run(model), want)
    assert merge_twins(model) == 1  # the twin is still there, without a reader
    assert reads(model, "both") == ["cut"]


@pytest.mark.parametrize(
    "model",
    [
        turned(cuts=()),  # both halves may have to compute it
        turned(cuts=("cut", "twin")),  # two outputs keep their names
        turned(perm=(0, 3, 2, 1)),  # another computation of the same input
    ],
    ids=["no cut", "two cuts", "other attributes"],
)
def test_what_is_no_twin_of_a_cut_stays(model: ir.Model) -> None:
    before = store.to_bytes(model)
    assert merge_twins(model) == 0
    assert store.to_bytes(model) == before


def reshaped(owner: str, *, second: int = 5, chain: bool = False) -> ir.Model:
    """Two reshapes to shapes that have a name each, ``<owner>a`` and ``<owner>b``."""
    builder = GraphBuilder("constants", opset=18)
    builder.input("image", F32, ["batch", 4, 5, 5])
    for name, last in (("a", 5), ("b", second)):
        shape = ir.Tensor(np.asarray([-1, 100 // last, last], np.int64), name=f"{owner}{name}")
        constant = builder.initializer(f"{owner}{name}", shape)
        builder.node("Reshape", ["image", constant], f"view_{name}")
        if chain:
            builder.node("Relu", [f"view_{name}"], f"cut_{name}")
    last_ = "cut" if chain else "view"
    builder.node("Abs", [f"{last_}_b"], "both")
    for name in ("both", f"{last_}_a"):
        builder.typed(name, F32, ["batch", None, None])
    return builder.model(["both", f"{last_}_a"], ir_version=10, metadata={})


def test_small_constants_are_the_same_by_their_values() -> None:
    """The exporter gives each shape that it writes down a name of its own."""
    model = reshaped("shape_")
    want = run(model)
    assert merge_twins(model) == 1
    assert reads(model, "both") == ["view_a"]
    assert np.array_equal(run(model), want)
    assert merge_twins(reshaped("shape_", second=10)) == 0


def test_a_twin_further_on_is_found_through_the_twins_before_it() -> None:
    model = reshaped("shape_", chain=True)
    assert merge_twins(model) == 1
    assert reads(model, "both") == ["cut_a"]
    # The views before them are no outputs, so each half keeps its own.
    assert reads(model, "cut_b") == ["view_b"]


def test_the_backbones_tensors_are_never_compared_by_value() -> None:
    """They are equal by chance: another backbone on the same graph has others."""
    assert merge_twins(reshaped("backbone.")) == 0


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.lists(
        st.tuples(st.sampled_from(["Relu", "Abs", "Neg"]), st.integers(0, 9)),
        min_size=1,
        max_size=9,
    ),
    cuts=st.sets(st.integers(0, 8), max_size=4),
)
def test_merging_keeps_every_answer(nodes: list[tuple[str, int]], cuts: set[int]) -> None:
    """Law: whatever is computed twice, all outputs keep their names and values."""
    builder = GraphBuilder("law", opset=18)
    builder.input("image", F32, ["batch", 4, 5, 5])
    values = ["image"]
    for at, (kind, source) in enumerate(nodes):
        values.append(builder.node(kind, [values[source % len(values)]], f"v{at}"))
    outputs = [f"v{at}" for at in sorted({*cuts, len(nodes) - 1}) if at < len(nodes)]
    for name in outputs:
        builder.typed(name, F32, ["batch", 4, 5, 5])
    model = builder.model(outputs, ir_version=10, metadata={})
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32)
    want = Session(store.to_bytes(model), exact=True).run({"image": image})
    merge_twins(model)
    got = Session(store.to_bytes(model), exact=True).run({"image": image})
    assert list(got) == list(want)
    assert all(np.array_equal(got[name], want[name]) for name in want)
