"""Parsing with NVIDIA's parser: what it takes, and what our message says of what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from tests.support import branch_graphs
from tests.support.real_parser import Graph
from toolchain.core.errors import BuildError, EngineError, ModelRefusedError
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import KitSlot
from toolchain.device.engine.log import Messages
from toolchain.device.engine.parse import (
    NetworkInput,
    ParsedNetwork,
    Refusal,
    _refusals,
    parse,
    require_slots,
    site_of,
)

SITES = ("blocks.0", "blocks.1", "blocks.1.2", "block0", "block00", "block01", "blocks00")


def slots_of(network: ParsedNetwork) -> list[KitSlot]:
    return [
        KitSlot(name, tuple(None if d == -1 else d for d in tensor.shape), "float32")
        for name, tensor in network.inputs().items()
        if name != "image"
    ]


def test_every_slot_is_an_input(rtx: TensorRT, graph: Graph) -> None:
    network = parse(rtx, graph("swap-if"))
    slots = slots_of(network)
    assert {"head.weight", "head.bias"} < {slot.name for slot in slots}
    assert next(slot for slot in slots if slot.name == "head.bias").shape == (None,)
    require_slots([network.interface()], slots, whole=True)


def test_static_graph_takes_the_picture_alone(rtx: TensorRT, graph: Graph) -> None:
    static, swap = parse(rtx, graph("static-if")), parse(rtx, graph("swap-if"))
    assert set(static.inputs()) == {"image"}
    slots = slots_of(swap)
    with pytest.raises(EngineError, match=r"head\.weight: expected an input, got none"):
        require_slots([static.interface()], slots[-1:])
    require_slots([static.interface(), swap.interface()], slots)
    with pytest.raises(EngineError, match="expected no such input, which nobody sets"):
        require_slots([swap.interface()], slots[1:], whole=True)


def test_slot_of_another_shape_or_dtype() -> None:
    def network(shape: tuple[int, ...], element: str) -> dict[str, NetworkInput]:
        return {"head.bias": NetworkInput(shape, element)}

    slot = KitSlot("head.bias", (None,), "float32")
    require_slots([network((-1,), "FLOAT")], [slot])
    with pytest.raises(EngineError, match=r"head\.bias: expected the shape \(-1,\), got \(10,\)"):
        require_slots([network((10,), "FLOAT")], [slot])
    with pytest.raises(EngineError, match="expected float32, got HALF"):
        require_slots([network((-1,), "HALF")], [slot])


def test_refused_node_is_named_with_block_and_layer(rtx: TensorRT, graph: Graph) -> None:
    model = onnx.load_from_string(graph("swap-if"))
    gate = next(node for node in model.graph.node if node.op_type == "If")
    then = next(a.g for a in gate.attribute if a.name == "then_branch")
    inner = next(node for node in then.node if node.op_type == "Relu")
    inner.op_type = "NonZero"
    site = gate.output[0].removeprefix("out.")
    with pytest.raises(ModelRefusedError) as caught:
        parse(rtx, model.SerializeToString(), sites=[site], layers={inner.name: "layer9.relu"})
    message = caught.value.message
    assert f"node {inner.name!r}, operator NonZero, block {site}, " in message
    assert "in the PyTorch model layer9.relu: " in message
    assert rtx.build in message
    assert caught.value.fix


def test_unknown_operator(rtx: TensorRT) -> None:
    model = branch_graphs.model(
        [branch_graphs.node("Frobnicate", ["x"], "gate.block01")], ["gate.block01"]
    )
    with pytest.raises(
        ModelRefusedError, match=r"'gate\.block01', operator Frobnicate, block block01"
    ):
        parse(rtx, model, sites=SITES)


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x07" * 50], ids=["empty", "text", "cut"])
def test_bytes_that_are_no_model(rtx: TensorRT, data: bytes) -> None:
    with pytest.raises(ModelRefusedError, match="the side of block00"):
        parse(rtx, data, what="the side of block00")


def test_truncated_model(rtx: TensorRT, graph: Graph) -> None:
    data = graph("swap-if")
    with pytest.raises(ModelRefusedError, match="expected an ONNX model, got other bytes"):
        parse(rtx, data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("in.block00", "block00"),
        ("block01/then/out.block01/up", "block01"),
        ("gate.blocks.1", "blocks.1"),
        ("gate.blocks.1.2", "blocks.1.2"),
        ("block.blocks00", "blocks00"),
        ("out.block0", "block0"),
        ("v10", ""),
        ("", ""),
    ],
)
def test_block_of_a_name(name: str, site: str) -> None:
    assert site_of([name], SITES) == site


def test_old_parsers_name_the_node_in_their_log() -> None:
    """TensorRT 8.x: the error has a number, the log has output and operator."""
    messages = Messages()
    for line in (
        'ModelImporter.cpp:726: While parsing node number 31 [If -> "out.block02"]:',
        "ModelImporter.cpp:728: --- Begin node ---",
        'ModelImporter.cpp:729: input: "flag"\noutput: "out.block02"\nname: "out.block02"\n',
    ):
        messages.take("ERROR", line)
    error = SimpleNamespace(node=lambda: 31, desc=lambda: "no\n importer")
    trt: Any = SimpleNamespace(features=SimpleNamespace(error_nodes=False))
    parser = SimpleNamespace(num_errors=1, get_error=lambda place: error)
    assert list(_refusals(trt, parser, messages)) == [Refusal("out.block02", "If", "no importer")]
    assert list(_refusals(trt, parser, Messages())) == [Refusal("number 31", "", "no importer")]


@pytest.mark.parametrize("how", ["nothing", "raises"])
def test_no_builder(rtx: TensorRT, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the binding's factory returns nothing, which it reports as a TypeError."""

    def builder(logger: Any) -> None:
        logger.log(rtx.module.ILogger.ERROR, "CUDA initialization failure with error: 35")
        if how == "raises":
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(rtx.module, "Builder", builder)
    with pytest.raises(BuildError, match="got none: CUDA initialization failure"):
        parse(rtx, b"\x3a\x00")
