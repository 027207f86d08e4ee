"""Sessions: what onnxruntime refuses becomes one of our errors, naming the model and the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support import cases
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import GraphError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph.builder import GraphBuilder
from toolchain.export.graph.names import WEIGHTS_FILE
from toolchain.export.graph.store import pack_tensors, to_bytes

F32 = ir.DataType.FLOAT


def adder() -> bytes:
    """``y = x + w`` with ``w`` as an input."""
    sketch = GraphBuilder("adder", opset=18)
    sketch.input("x", F32, ["batch", 2])
    sketch.input("w", F32, [2])
    sketch.node("Add", ["x", "w"], "y")
    sketch.node("Neg", ["y"], "z")
    for name in ("y", "z"):
        sketch.typed(name, F32, ["batch", 2])
    return to_bytes(sketch.model(["y", "z"], ir_version=10, metadata={}))


GOOD = {"x": np.ones((3, 2), np.float32), "w": np.array([1, 2], np.float32)}


def test_outputs_come_by_name_all_or_those_asked_for() -> None:
    session = Session(adder())
    assert session.inputs == {"x": ("batch", 2), "w": (2,)}
    assert session.outputs == ("y", "z")
    outputs = session.run(GOOD)
    assert set(outputs) == {"y", "z"}
    assert outputs["y"].tolist() == [[2, 3]] * 3
    assert list(session.run(GOOD, ["z"])) == ["z"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("w", None),
        ("w", np.ones(3, np.float32)),
        ("w", np.ones(2, np.float64)),
        ("w", np.ones(2, np.int64)),
        ("w", np.ones((1, 2, 1), np.float32)),
        ("x", np.ones((3, 5), np.float32)),
        ("unknown", np.ones(2, np.float32)),
    ],
)
def test_wrong_inputs_are_refused_with_the_right_ones(name: str, value: Any) -> None:
    feeds = {**GOOD, name: value}
    if value is None:
        del feeds[name]
    with pytest.raises(GraphError, match=r"adder: onnxruntime refused to run") as caught:
        Session(adder(), what="adder").run(feeds)
    assert caught.value.fix == "expected the inputs x ['batch', 2], w [2]"
    assert caught.value.__cause__ is not None


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(GraphError, match="refused to run"):
        Session(adder()).run(GOOD, ["nothing"])


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 300, adder()[:-40]])
def test_bytes_that_are_no_model_are_refused(data: Any) -> None:
    with pytest.raises(GraphError, match=r"odd\.onnx: onnxruntime [0-9.]+ cannot load it"):
        Session(data, what="odd.onnx")


def test_an_operator_it_does_not_know_is_told() -> None:
    sketch = GraphBuilder("strange", opset=18)
    sketch.input("x", F32, [1])
    sketch.node("NoSuchOperator", ["x"], "y")
    sketch.typed("y", F32, [1])
    with pytest.raises(GraphError, match="NoSuchOperator"):
        Session(to_bytes(sketch.model(["y"], ir_version=10, metadata={})))


def test_a_missing_or_short_weights_file_is_told(plain_graph: bytes, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="swap: onnxruntime"):
        Session(plain_graph, folder=tmp_path, what="swap")
    made = cases.made("plain")
    (tmp_path / WEIGHTS_FILE).write_bytes(
        made.halves.weights_data[: len(made.halves.weights_data) // 2]
    )
    with pytest.raises(GraphError, match="swap: onnxruntime"):
        Session(plain_graph, folder=tmp_path, what="swap")


@pytest.mark.parametrize("place", ["../secret.bin", "{}/secret.bin"])
def test_weights_never_come_from_outside_the_folder(tmp_path: Path, place: Any) -> None:
    """A graph that points out of its folder is refused by the runtime, and that is our error."""
    packed = pack_tensors({"a.w": np.ones(2, np.float32)}, "weights.safetensors")
    (tmp_path / "secret.bin").write_bytes(packed.data)
    inner = tmp_path / "inner"
    inner.mkdir()
    sketch = GraphBuilder("escape", opset=18)
    sketch.input("x", F32, [2])
    offset, length = packed.places["a.w"]
    where, shape = place.format(tmp_path), ir.Shape([2])
    sketch.initializer("w", ir.ExternalTensor(where, offset, length, F32, shape=shape, name="w"))
    sketch.node("Add", ["x", "w"], "y")
    sketch.typed("y", F32, [2])
    graph = to_bytes(sketch.model(["y"], ir_version=10, metadata={}))
    with pytest.raises(GraphError, match="cannot load it"):
        Session(graph, folder=inner)


@pytest.fixture(scope="module")
def plain_graph() -> bytes:
    return cases.made("plain").graph(Linkage("swap", "if"))


def test_constants_live_as_long_as_the_session() -> None:
    """onnxruntime keeps pointers into constants: the session must keep the arrays."""
    made = cases.made("plain")
    session = made.session(Linkage("static", "rows"))
    images = made.case.images(2).numpy()
    first = session.run({"image": images})["logits"]
    rubbish = [np.random.default_rng(i).normal(size=1000) for i in range(200)]
    assert len(rubbish) == 200
    assert np.array_equal(session.run({"image": images})["logits"], first)


def test_sessions_of_one_model_answer_alike(plain_graph: bytes) -> None:
    """Law: the same model, pictures and slots give the same bytes."""
    made = cases.made("plain")
    feeds = {"image": made.case.images(1).numpy(), **made.slots}
    first, second = (
        Session(plain_graph, folder=made.folder).run(feeds)["logits"] for _ in range(2)
    )
    assert np.array_equal(first, second)
