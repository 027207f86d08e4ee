"""Graphs and tensors on disk: deterministic bytes out, bounded and checked bytes in."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as safetensors_load

from tests.support import cases
from tests.support.cases import Made
from toolchain.bundle.graphs import LIMIT_INLINE_BYTES
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import GraphError, StorageError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE

tensors = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.tuples(st.integers(1, 4), st.integers(0, 4), st.sampled_from([np.float32, np.int64])).map(
        lambda t: np.arange(t[0] * t[1], dtype=t[2]).reshape(t[:2])
    ),
    max_size=6,
)


@given(tensors, st.randoms())
def test_packing_is_order_independent_and_places_are_exact(given_tensors: Any, random: Any) -> None:
    """Law: the same tensors in any order give the same bytes, and each lies where places says."""
    names = list(given_tensors)
    random.shuffle(names)
    packed = store.pack_tensors(given_tensors, "f")
    assert store.pack_tensors({n: given_tensors[n] for n in names}, "f").data == packed.data
    assert set(packed.places) == set(given_tensors)
    for name, array in given_tensors.items():
        offset, length = packed.places[name]
        assert packed.data[offset : offset + length] == array.tobytes()
    assert set(safetensors_load(packed.data)) == set(given_tensors)


def test_turned_views_are_packed_as_they_read() -> None:
    """A transposed constant is laid out first: safetensors would write its memory as it lies."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = {"a.t": array.T, "a.f": np.asfortranarray(array), "a.s": array[:, ::2]}
    arrays = safetensors_load(store.pack_tensors(turned, "f").data)
    assert all(np.array_equal(arrays[name], turned[name]) for name in turned)


def test_graphs_survive_writing(made: Made) -> None:
    """Law: to_bytes(from_bytes(b)) is b, external references included."""
    for data in (made.halves.backbone_graph, made.halves.domain_graph):
        assert store.to_bytes(store.from_bytes(data, what="half")) == data


def test_every_named_tensor_lies_beside_the_graph(made: Made) -> None:
    """A graph holds references and small anonymous constants only."""
    for half, file in ((made.halves.backbone, WEIGHTS_FILE), (made.halves.domain, SLOTS_FILE)):
        for name, value in half.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if "." in name:
                assert isinstance(tensor, ir.ExternalTensor), name
                assert str(tensor.location) == file
            else:
                assert tensor.nbytes <= LIMIT_INLINE_BYTES or isinstance(tensor, ir.ExternalTensor)


def test_references_are_found_inside_branches(plain: Made) -> None:
    model = link(plain.halves, Linkage("static", "if"))
    locations = {t.name: str(t.location) for t in store.references(model)}
    expected = set(plain.halves.slots) | {
        n for n in plain.halves.backbone.graph.initializers if "." in n
    }
    assert set(locations) == expected
    assert locations["head.weight"] == SLOTS_FILE
    assert locations["backbone.blocks.0.conv1.weight+bn"] == WEIGHTS_FILE


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_graph_is_refused(plain: Made, keep: Any) -> None:
    data = plain.halves.backbone_graph
    cut = data[: int(len(data) * keep)]
    with pytest.raises(GraphError):
        model = store.from_bytes(cut, what="backbone.onnx")
        Session(store.to_bytes(model), folder=plain.folder, what="backbone.onnx")


@pytest.mark.parametrize(
    "data", [b"\x00" * 64, b"PK\x03\x04not onnx", b"\xff" * 200, "Ünïcode".encode()]
)
def test_foreign_bytes_are_refused(data: Any) -> None:
    with pytest.raises(GraphError, match=r"x\.onnx[\s\S]*da3-export"):
        store.from_bytes(data, what="x.onnx")


def test_a_huge_graph_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "LIMIT_GRAPH_BYTES", 100)
    with pytest.raises(GraphError, match="at most 100 bytes of graph, got 101"):
        store.from_bytes(b"\x08" * 101, what="x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"\x08" * 101)
    with pytest.raises(StorageError, match="at most 100 bytes"):
        store.read_graph(tmp_path / "x.onnx")


def _domain(plain: cases.Made) -> ir.Model:
    return store.from_bytes(plain.halves.domain_graph, what="domain.onnx")


def test_a_reference_outside_the_file_is_refused(plain: Made) -> None:
    """The graph says where a tensor lies; a file that is too short for it does not belong to it."""
    with pytest.raises(
        GraphError, match=r"points outside slots\.safetensors[\s\S]*belong together"
    ):
        store.load_tensors(_domain(plain), SLOTS_FILE, plain.halves.slots_data[:-8])


def test_a_reference_with_another_length_is_refused(plain: Made) -> None:
    data = onnx.load_model_from_string(plain.halves.domain_graph)
    tensor = next(t for t in data.graph.initializer if t.name == "head.weight")
    entry = next(e for e in tensor.external_data if e.key == "length")
    entry.value = str(int(entry.value) - 4)
    spoiled = store.from_bytes(data.SerializeToString(), what="domain.onnx")
    with pytest.raises(GraphError, match=r"'head\.weight' points outside"):
        store.load_tensors(spoiled, SLOTS_FILE, plain.halves.slots_data)


@pytest.mark.parametrize("offset", ["-8", str(1 << 62)])
def test_a_reference_with_a_wild_offset_is_refused(plain: Made, offset: Any) -> None:
    data = onnx.load_model_from_string(plain.halves.domain_graph)
    tensor = next(t for t in data.graph.initializer if t.name == "head.weight")
    next(e for e in tensor.external_data if e.key == "offset").value = offset
    with pytest.raises(GraphError):
        spoiled = store.from_bytes(data.SerializeToString(), what="domain.onnx")
        store.load_tensors(spoiled, SLOTS_FILE, plain.halves.slots_data)


def test_a_shorter_file_of_another_domain_is_refused(plain: Made) -> None:
    """A swapped file is caught by its size here; equal sizes are what digests are for."""
    other = cases.made("single").halves.slots_data
    assert len(other) < len(plain.halves.slots_data)
    with pytest.raises(GraphError, match="points outside"):
        store.load_tensors(_domain(plain), SLOTS_FILE, other)


def test_the_checker_says_what_is_wrong(tmp_path: Path) -> None:
    model = store.from_bytes(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])],
                "wrong",
                [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
                [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
            ),
            opset_imports=[onnx.helper.make_opsetid("", 18)],
            ir_version=10,
        ).SerializeToString(),
        what="wrong",
    )
    path = tmp_path / "wrong.onnx"
    path.write_bytes(store.to_bytes(model))
    with pytest.raises(
        GraphError, match=r"wrong\.onnx: onnx\.checker refuses it[\s\S]*NoSuchOperator"
    ):
        store.check(path)


@pytest.mark.parametrize(
    "word", [b"an_op", b"an_input", b"an_output", b"a_domain", b"a_dim", b"a_key"]
)
def test_text_that_is_not_utf8_is_one_error(word: bytes) -> None:
    node = onnx.helper.make_node("an_op", ["an_input"], ["an_output"], domain="a_domain")
    ports = [onnx.helper.make_tensor_value_info("an_input", 1, ["a_dim"])]
    outs = [onnx.helper.make_tensor_value_info("an_output", 1, None)]
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports, outs))
    onnx.helper.set_model_props(made, {"a_key": "value"})
    data = made.SerializeToString().replace(word, b"\xff" + word[1:])
    with pytest.raises(GraphError, match="half: not an ONNX model: expected UTF-8"):
        store.from_bytes(data, what="half")


@given(st.lists(st.integers(1, 4), min_size=0, max_size=4), st.randoms())
def test_a_turned_tensor_is_packed_as_it_reads_not_as_it_lies(
    shape: list[int], random: Random
) -> None:
    """Law: the packed bytes are the tensor's values in C order, whatever its strides."""
    straight = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    axes = list(range(len(shape)))
    random.shuffle(axes)
    turned = straight.transpose(axes)
    packed = store.pack_tensors({"a.weight": turned}, "x.safetensors")
    offset, length = packed.places["a.weight"]
    assert packed.data[offset : offset + length] == turned.tobytes()
