"""BatchNorm folding: the same outputs, backbone tensors only, and only where it is right."""

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
from toolchain.export.graph.builder import GraphBuilder, input_names
from toolchain.export.graph.fold import fix_reshapes, fold_batchnorm

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
    given = ["image", tensor("backbone.conv.weight", 8, 4 // groups, 3, 3)]
    if bias:
        given.append(tensor("backbone.conv.bias", 8))
    builder.node("Conv", given, "y", {"pads": [1, 1, 1, 1], "group": groups})
    norm = [tensor(f"{owner}bn.{n}", 8) for n in ("weight", "bias", "running_mean")]
    norm.append(tensor(f"{owner}bn.running_var", 8, low=variance / 2, high=variance))
    builder.node("BatchNormalization", ["y", *norm], "z", {"epsilon": epsilon})
    result = (
        builder.node("Add", ["y", "z"], "both") if twice else builder.node("Relu", ["z"], "both")
    )
    builder.typed(result, F32, ["batch", 8, 5, 5])
    return builder.model([result], ir_version=10, metadata={})


def run(model: ir.Model, seed: int = 0) -> np.ndarray[Any, Any]:
    image = np.random.default_rng(seed).normal(size=(2, 4, 5, 5)).astype(np.float32)
    found = Session(store.to_bytes(model), exact=True).run({"image": image})
    return found["both"]


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
