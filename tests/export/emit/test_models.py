"""The models of a kit: what each target asks for is in the bytes, and they answer as fp32 does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.support.kitted import ORDERS, Kitted
from toolchain.device.boards.target import find
from toolchain.device.engine.kit import Kit
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session


def model(kit: Kit, file: str) -> onnx.ModelProto:
    return onnx.load_model_from_string(kit.read(file))


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    result = []
    for node in graph.node:
        result.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                result += nodes(attribute.g)
    return result


def whole(kitted: Kitted) -> dict[str, tuple[Kit, str]]:
    return {
        key: (kit, item.file)
        for key, kit in kitted.kits.items()
        for flavour in kit.manifest.flavours
        for item in flavour.models
        if item.role == "whole"
    }


def test_every_order_has_its_kit(kitted: Kitted) -> None:
    static = {f"{key} static" for key, (_, _, flavours) in ORDERS.items() if "static" in flavours}
    assert set(kitted.kits) == set(ORDERS) | static


def test_every_model_is_whole_and_passes_the_checker(kitted: Kitted) -> None:
    for kit in kitted.kits.values():
        for flavour in kit.manifest.flavours:
            for item in flavour.models:
                proto = model(kit, item.file)
                onnx.checker.check_model(proto, full_check=True)
                assert not any(t.external_data for t in proto.graph.initializer)


def test_no_model_is_above_the_opset_of_its_target(kitted: Kitted) -> None:
    opsets = {}
    for key, kit in kitted.kits.items():
        target = find(kit.manifest.target)
        for flavour in kit.manifest.flavours:
            for item in flavour.models:
                (own,) = (o.version for o in model(kit, item.file).opset_import if not o.domain)
                assert own == kit.manifest.opset <= target.release.opset
                opsets[key] = own
    assert opsets["nano fp32"] == 13
    assert opsets["xavier fp16"] == 16
    assert opsets["thor fp32"] == 18


def test_before_10_4_no_slot_feeds_a_convolution(kitted: Kitted) -> None:
    def fed(key: str) -> set[str]:
        kit = kitted.kits[key]
        slots = {slot.name for slot in kit.manifest.slots}
        convs = [n for n in nodes(model(kit, "swap.onnx").graph) if n.op_type == "Conv"]
        assert convs
        return {name for conv in convs for name in conv.input} & slots

    assert fed("thor fp32")
    assert not fed("orin fp16")
    assert not fed("nano fp32")


def test_precision_stands_in_the_graph_where_networks_are_typed(kitted: Kitted) -> None:
    def halves(key: str) -> int:
        graph = model(kitted.kits[key], "swap.onnx").graph
        return sum(n.op_type == "Cast" for n in nodes(graph))

    assert halves("orin fp16") > 0
    assert halves("thor fp32") == 0
    # There it is a flag of the builder, which keeps these nodes at fp32.
    assert halves("xavier fp16") == 0
    (pinned,) = (m.pinned for m in kitted.kits["xavier fp16"].manifest.flavours[0].models)
    assert "logits" in pinned
    assert not any(m.pinned for f in kitted.kits["orin fp16"].manifest.flavours for m in f.models)


def test_int8_quantises_inside_the_branches(kitted: Kitted) -> None:
    for key in ("orin int8", "desktop int8"):
        graph = model(kitted.kits[key], "swap.onnx").graph
        inside = [
            node
            for outer in graph.node
            for attribute in outer.attribute
            if attribute.type == onnx.AttributeProto.GRAPH
            for node in nodes(attribute.g)
        ]
        convs = sum(node.op_type == "Conv" for node in inside)
        assert convs > 0
        assert sum(node.op_type == "QuantizeLinear" for node in inside) >= convs


@pytest.mark.parametrize(
    "key", ["orin fp16", "orin int8", "thor fp32", "nano fp32", "desktop int8"]
)
def test_the_whole_model_answers_as_the_bundle_does(key: str, kitted: Kitted) -> None:
    from tests.support.golden_accuracy import measure_golden
    from toolchain.bundle import open_bundle
    from toolchain.bundle.golden import golden_of
    from toolchain.bundle.slots import slot_arrays

    kit = kitted.kits[key]
    bundle = open_bundle(kitted.report.bundle)
    accuracy = measure_golden(
        kit.read("swap.onnx"),
        slot_arrays(bundle.blob("slots.safetensors")),
        golden_of(bundle),
        bundle.manifest.preprocess,
    )
    assert not accuracy.faults(kit.manifest.precision), accuracy  # type: ignore[arg-type]


def test_a_side_gives_its_gate_as_one_byte(kitted: Kitted) -> None:
    from toolchain.bundle import open_bundle
    from toolchain.bundle.slots import slot_arrays

    slots = slot_arrays(open_bundle(kitted.report.bundle).blob("slots.safetensors"))
    kit = kitted.kits["thor fp32"]
    gated = 0
    for item in kit.manifest.flavour("staged").models:
        if item.role != "side" or item.site not in kit.manifest.gates:
            continue
        gated += 1
        session = Session(kit.read(item.file))
        assert f"open.{item.site}" in session.outputs
        for seed in range(8):
            drawn = np.random.default_rng(seed)
            feeds = {
                name: slots[name]
                if name in slots
                else drawn.normal(size=[d if isinstance(d, int) else 1 for d in shape]).astype("f4")
                for name, shape in session.inputs.items()
            }
            got = session.run(feeds)
            flag = got[f"open.{item.site}"]
            assert flag.dtype == np.bool_
            assert flag.nbytes == 1
            assert bool(flag[0, 0]) == bool(got[f"gate.{item.site}"][0, 0] >= 0)
    assert gated == len(kit.manifest.gates)


def test_the_swap_model_takes_any_class_count(kitted: Kitted) -> None:
    kit = kitted.kits["orin fp16"]
    runner = LinkedModel(Session(kit.read("swap.onnx")))
    size = kit.backbone.input.size
    image = np.zeros((1, 3, size, size), np.float32)
    for classes in (1, 7, kit.manifest.classes.high):
        slots = {
            slot.name: np.zeros([classes if d is None else d for d in slot.shape], np.float32)
            for slot in kit.manifest.slots
        }
        assert runner.run(image, slots).logits.shape == (1, classes)


def test_slots_of_the_kit_are_inputs_of_its_models(kitted: Kitted) -> None:
    for kit, file in whole(kitted).values():
        inputs = {value.name for value in model(kit, file).graph.input}
        assert inputs == {"image"} | {slot.name for slot in kit.manifest.slots}
