"""Limits of the parsers: what a target cannot read is refused here, by node and all at once."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.cases import made
from tests.support.small_models import TOYS, draw, linked, text
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import ModelRefusedError
from toolchain.device.boards.parsers import SINCE, types
from toolchain.export.emit.dialect import lower
from toolchain.export.emit.limits import (
    LIMITS,
    refuse_branches,
    refuse_unsupported,
)
from toolchain.export.emit.matmul import through_matmul
from toolchain.export.graph.link import link

# Captured once: these tests stay beside the others that capture.
pytestmark = pytest.mark.usefixtures("plain")

VERSIONS = {"8.2.1": 13, "8.5.2": 17, "8.6.2": 17, "10.3": 18, "10.16": 18, "11.4": 18}


@pytest.mark.parametrize("tensorrt", VERSIONS)
@pytest.mark.parametrize("name", ["plain", "inverted", "one_pixel", "tokens-da2", "preactivation"])
def test_what_the_passes_make_is_within_the_limits(name: str, tensorrt: str) -> None:
    model = through_matmul(linked(made(name)))
    # LayerNormalization is read from 8.6 on, and 8.5 reads opset 16 as well as 17.
    opset = 16 if tensorrt.startswith("8.5") else VERSIONS[tensorrt]
    refuse_unsupported(lower(model, opset), tensorrt)


@pytest.mark.parametrize("name", TOYS)
def test_the_branches_of_linked_graphs_fit(name: str) -> None:
    refuse_branches(linked(made(name)))


def test_a_slot_in_a_convolution_is_refused_up_to_10_3_with_its_module_and_the_way_out() -> None:
    model = lower(linked(made("plain")), 13)
    for tensorrt in ("8.2", "8.5", "8.6", "10.3"):
        with pytest.raises(ModelRefusedError) as caught:
            refuse_unsupported(model, tensorrt)
        message = str(caught.value)
        assert "at block00.adaptor.reduce" in message
        assert "at block00.adaptor.expand" in message
        assert "MatMul" in caught.value.fix
    refuse_unsupported(model, "10.4")


def test_rows_are_refused_where_the_parser_has_no_nonzero() -> None:
    model = lower(link(made("plain").loaded(), Linkage("static", "rows")), 13)
    with pytest.raises(ModelRefusedError, match=r"NonZero") as caught:
        refuse_unsupported(model, "8.2")
    assert "form 'if'" in caught.value.fix
    with pytest.raises(ModelRefusedError, match=r"NonZero.*BOOL"):
        refuse_unsupported(model, "8.5")


def test_a_newer_opset_is_refused_and_every_fault_is_told() -> None:
    with pytest.raises(ModelRefusedError) as caught:
        refuse_unsupported(linked(made("tokens")), "8.5")
    assert "opset 17 at most, got 18" in str(caught.value)
    assert str(caught.value).count("LayerNormalization") >= 4


BROKEN = {
    "a kernel that is computed": ("k = Add (w, w) [it] y = Conv (x, k)", "8.2", "kernel"),
    "a convolution over one dimension": ("[it] y = Conv (line, lk)", "8.2", "spatial"),
    "a pool with dilations": (
        "[it] y = MaxPool <kernel_shape: ints = [2, 2], dilations: ints = [2, 2]> (x)",
        "10.3",
        "dilations",
    ),
    "a pool's indices": (
        "[it] y, i = MaxPool <kernel_shape: ints = [2, 2]> (x) z = Neg (i)",
        "10.3",
        "second output",
    ),
    "a cubic resize": ('[it] y = Resize <mode: string = "cubic"> (x, , s)', "8.6", "mode"),
    "a resize with antialias": (
        '[it] y = Resize <mode: string = "linear", antialias: int = 1> (x, , s)',
        "11.4",
        "mode",
    ),
    "a norm's scale that is computed": (
        "k = Add (c, c) [it] y = InstanceNormalization (x, k, c)",
        "8.5",
        "scale",
    ),
    "a zero point": (
        "[it] q = QuantizeLinear (x, one, three) y = Cast <to: int = 1> (q)",
        "10.3",
        "zero point",
    ),
    "a scatter that adds": (
        '[it] y = ScatterND <reduction: string = "add"> (x, rows, ups)',
        "10.3",
        "reduction",
    ),
    "axes that are computed": ("a = Add (ax, ax) [it] y = ReduceSum (x, a)", "10.3", "axes"),
    "a comparison of bools": (
        "g = Greater (x, x) [it] e = Equal (g, g) y = Cast <to: int = 1> (e)",
        "8.6",
        "BOOL",
    ),
    "doubles": (
        "d = Cast <to: int = 11> (x) [it] e = Sqrt (d) y = Cast <to: int = 1> (e)",
        "10.3",
        "DOUBLE",
    ),
    "an operator of no list": ("[it] y = Det (x)", "11.4", "no TensorRT"),
    "an operator of a foreign domain": ("[it] y = com.microsoft.Gelu (x)", "11.4", "no TensorRT"),
}
HELD = {
    "w": draw((2, 2, 1, 1)),
    "lk": draw((2, 2, 1)),
    "c": draw((2,)),
    "s": np.array([1, 1, 2, 2], np.float32),
    "one": np.float32(1),
    "three": np.int8(3),
    "rows": np.array([[0]]),
    "ups": draw((1, 2, 4, 4)),
    "ax": np.array([1]),
}


def broken(name: str) -> ir.Model:
    """A model with one node ``it`` that breaks a limit."""
    body = BROKEN[name][0]
    words = set(re.findall(r"[a-z]+", body))
    source = f"""<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[1,2,4,4] x, float[1,2,4] line) => (float[] y) {{ {body} }}"""
    return text(source, {key: np.asarray(array) for key, array in HELD.items() if key in words})


@pytest.mark.parametrize("name", BROKEN)
def test_a_breach_is_told_with_node_and_limit(name: str) -> None:
    _, tensorrt, words = BROKEN[name]
    with pytest.raises(ModelRefusedError, match="node 'it'") as caught:
        refuse_unsupported(broken(name), tensorrt)
    assert words in str(caught.value)
    assert caught.value.fix


def test_every_limit_names_operators_that_are_in_the_tables() -> None:
    known = set(types((11, 0)))
    assert {operator for limit in LIMITS for operator in limit.operators} <= known
    assert set(SINCE) <= known
    assert all(limit.since < limit.until for limit in LIMITS)


BRANCHES = {
    "another shape": (
        "float[1,2] z",
        "z = Identity (x)",
        "float[2,1] w",
        "w = Transpose (x)",
        "shape",
    ),
    "another rank": (
        "float[1,2] z",
        "z = Identity (x)",
        "float[2] w",
        "w = Reshape (x, flat)",
        "shape",
    ),
    "another type": (
        "float[1,2] z",
        "z = Identity (x)",
        "double[1,2] w",
        "w = Cast <to: int = 11> (x)",
        "data type|contradict",
    ),
    "the same name": (
        "float[1,2] z",
        "z = Identity (x)",
        "float[1,2] z",
        "z = Neg (x)",
        "different names",
    ),
    "a free shape": (
        "float[N,2] z",
        "z = Identity (n)",
        "float[N,2] w",
        "w = Neg (n)",
        "known shape",
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_differ_are_refused_by_the_name_of_the_if(name: str) -> None:
    one, then, other, otherwise, words = BRANCHES[name]
    source = f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[1,2] x, float[N,2] n, bool flag) => (float[] y) {{
        [the_if] y = If (flag) <then_branch = t () => ({one}) {{ {then} }},
        else_branch = e () => ({other}) {{ {otherwise} }}> }}"""
    constants = {"flat": np.array([2])} if "flat" in otherwise else {}
    with pytest.raises(ModelRefusedError, match=words) as caught:
        refuse_branches(text(source, constants))
    assert "the_if" in str(caught.value)
