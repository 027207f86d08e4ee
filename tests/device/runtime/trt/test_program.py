"""Staged engines: routing by one byte per gate, and plans that do not fit each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.drawn import same, tensor
from tests.support.exported import Exported, Fleet
from tests.support.simulated import engines, small, tensorrt
from tests.support.simulated.engines import Segment, cuda_of, simulated
from tests.support.simulated.small import model, value
from toolchain import bundle
from toolchain.bundle.golden import shifted
from toolchain.bundle.release import Release, read_release
from toolchain.core.errors import BundleError
from toolchain.device.engine.cache import EnginePlan
from toolchain.device.engine.kit import KitSlot
from toolchain.device.runtime.trt.backend import EngineBackend
from toolchain.device.runtime.trt.plan import Plan
from toolchain.device.runtime.trt.program import Program, program

SITES = ("block00", "block02")
LOW, HIGH = 1, 32


class Staged:
    """A domain's program on a device, and the runs of each of its plans."""

    def __init__(self, exported: Exported, *, flags: bool = True, precision: str = "fp32") -> None:
        self.device = simulated()
        self.release = read_release(bundle.open_bundle(exported.bundle))
        parts = engines.segments(exported.bundle, exported.backbone, "staged", precision, flags)
        self.plans = {(p.role, p.site): self._plan(p) for p in parts}
        listed = [EnginePlan(p.role, p.site, p.file, 0) for p in parts]
        self.program = program(
            listed, lambda plan: self.plans[plan.role, plan.site], kit_slots(self.release)
        )
        self.session = EngineBackend(self.device, self.program, gates=self.release.gates)

    def _plan(self, part: Segment) -> Plan:
        made = engines.make_plan(self.device, part.data, "fp32", engines.PROFILE)
        return Plan(self.device, made.plan, what=part.file)

    def runs(self, role: str, site: str | None) -> int:
        """How often a segment was computed."""
        count: int = self.plans[role, site]._engine._runs
        return count


def kit_slots(release: Release) -> tuple[KitSlot, ...]:
    return tuple(
        KitSlot(n, (None, *a.shape[1:]) if n.startswith("head.") else a.shape, "float32")
        for n, a in release.slots.items()
    )


@pytest.fixture(scope="module")
def staged(fleet: Fleet) -> Staged:
    return Staged(fleet["first"])


def forced(release: Release, states: tuple[bool, ...]) -> dict[str, Any]:
    """A domain's tensors with every gate in a state of its own."""
    return shifted(release.slots, SITES, np.where(states, 500, -500).astype(np.float32))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.tuples(st.booleans(), st.booleans()), st.integers(1, 3))
def test_each_gate_sends_a_picture_through_one_segment_alone(
    staged: Staged, states: tuple[bool, bool], count: int
) -> None:
    """Law: a closed block is not computed, an open one is, and the side always."""
    assert staged.release.gates == SITES
    keys = [(role, site) for site in SITES for role in ("side", "opened", "closed")]
    before = {key: staged.runs(*key) for key in keys}
    bound = staged.session.bind(forced(staged.release, states))
    answer = staged.session.run_bound(tensor(count), bound, None)
    assert ((answer.gates >= 0) == states).all()
    for site, state in zip(SITES, states, strict=True):
        runs = {role: staged.runs(role, site) - before[role, site] for role in ("side", "opened")}
        assert runs == {"side": count, "opened": count * state}
        assert staged.runs("closed", site) - before["closed", site] == count * (not state)


def test_one_byte_is_read_per_gate_and_maps_stay(staged: Staged) -> None:
    """Downloads are a gate's byte and logit, and the answer; uploads are the picture alone."""
    cuda = cuda_of(staged.device)
    bound = staged.session.bind(staged.release.slots)
    before = replace(cuda.count)
    staged.session.run_bound(tensor(1), bound, None)
    assert cuda.count.uploads - before.uploads == 1
    assert cuda.count.downloads - before.downloads == 2 * len(SITES) + 1
    assert cuda.count.allocations == before.allocations


def test_the_sign_of_the_logit_decides_where_there_is_no_byte(staged: Staged, fleet: Fleet) -> None:
    plain = Staged(fleet["first"], flags=False)
    assert {site.decides for site in plain.program.sites if site.gate} == {
        f"gate.{site}" for site in SITES
    }
    images = tensor(6, 8)
    answers = [
        made.session.run_bound(images, made.session.bind(made.release.slots), None)
        for made in (staged, plain)
    ]
    assert same(answers[0].logits, answers[1].logits)
    assert same(answers[0].gates, answers[1].gates)


def test_a_gate_of_zero_is_open_by_byte_and_by_logit(fleet: Fleet) -> None:
    for flags in (True, False):
        made = Staged(fleet["first"], flags=flags)
        slots = {n: np.zeros_like(a) if ".gate." in n else a for n, a in made.release.slots.items()}
        answer = made.session.run_bound(tensor(1), made.session.bind(slots), None)
        assert (answer.gates == 0).all()
        assert all(made.runs("opened", site) == 1 for site in SITES)


def test_halved_segments_hand_maps_on_in_half_and_gates_in_full(fleet: Fleet) -> None:
    made, full = Staged(fleet["first"], precision="fp16"), Staged(fleet["first"])
    kinds = {name: tensor.element for name, tensor in made.program.tensors.items()}
    assert "HALF" in kinds.values()
    assert {kinds[n] for n in kinds if n.startswith(("gate.", "adaptor."))} == {"FLOAT"}
    assert kinds["image"] == kinds["logits"] == "FLOAT"
    states = (True, False)
    answers = [
        one.session.run_bound(tensor(4), one.session.bind(forced(one.release, states)), None)
        for one in (made, full)
    ]
    assert np.allclose(answers[0].logits, answers[1].logits, atol=0.05)


# -- plans that do not fit -------------------------------------------------------------------------

SIDE = EnginePlan("side", "block00", "side.plan", 0)
OPENED = EnginePlan("opened", "block00", "opened.plan", 0)
CLOSED = EnginePlan("closed", "block00", "closed.plan", 0)
TAIL = EnginePlan("tail", None, "tail.plan", 0)
MAP = [1, 3, 4, 4]


def node(kind: str, source: str, result: str) -> Any:
    return onnx.helper.make_node(kind, [source], [result])


def toy(**changes: bytes) -> dict[str, bytes]:
    """Segments of one gated site, by role."""
    image, result = value("image", MAP), value("out.block00", MAP)
    return {
        "side": model(
            [node("Neg", "image", "adaptor.block00"), gate("gate.block00")],
            [image],
            [value("adaptor.block00", MAP), value("gate.block00", [1, 1])],
        ),
        "opened": model(
            [node("Abs", "adaptor.block00", "out.block00")],
            [value("adaptor.block00", MAP)],
            [result],
        ),
        "closed": model([node("Identity", "image", "out.block00")], [image], [result]),
        "tail": model(
            [onnx.helper.make_node("Flatten", ["out.block00"], ["logits"])],
            [result],
            [value("logits", [1, 48])],
        ),
        **changes,
    }


def gate(name: str) -> Any:
    one = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32))
    return onnx.helper.make_node("Constant", [], [name], value=one)


def made_of(
    parts: dict[str, bytes],
    listed: tuple[EnginePlan, ...] = (SIDE, OPENED, CLOSED, TAIL),
    slots: tuple[KitSlot, ...] = (),
) -> Program:
    device = simulated()
    return program(
        listed,
        lambda plan: Plan(device, tensorrt.plan(parts[plan.role]), what=plan.file),
        slots,
    )


def test_the_toy_is_right() -> None:
    assert made_of(toy()).gates == ("gate.block00",)
    assert made_of(toy(), (SIDE, OPENED, TAIL)).gates == ()


OUT_HALF = model(
    [onnx.helper.make_node("Cast", ["image"], ["out.block00"], to=10)],
    [value("image", MAP)],
    [value("out.block00", MAP, 10)],
)
OUT_NARROW = model(
    [onnx.helper.make_node("Flatten", ["image"], ["out.block00"])],
    [value("image", MAP)],
    [value("out.block00", [1, 48])],
)
SIDE_MUTE = model(
    [node("Neg", "image", "adaptor.block00")],
    [value("image", MAP)],
    [value("adaptor.block00", MAP)],
)
SIDE_EARLY = model(
    [node("Neg", "out.block00", "adaptor.block00"), gate("gate.block00")],
    [value("out.block00", MAP)],
    [value("adaptor.block00", MAP), value("gate.block00", [1, 1])],
)
TAIL_OTHER = model(
    [onnx.helper.make_node("Flatten", ["out.block00"], ["answer"])],
    [value("out.block00", MAP)],
    [value("answer", [1, 48])],
)
CLOSED_OTHER = model(
    [node("Identity", "image", "out.block01")], [value("image", MAP)], [value("out.block01", MAP)]
)
SIDE_HALF = model(
    [onnx.helper.make_node("Cast", ["image"], ["adaptor.block00"], to=10), gate("gate.block00")],
    [value("image", MAP)],
    [value("adaptor.block00", MAP, 10), value("gate.block00", [1, 1])],
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"closed": OUT_HALF}, r"closed.plan: out.block00: expected FLOAT .* got HALF"),
        ({"closed": OUT_NARROW}, r"closed.plan: out.block00: .*\[1, 48\]"),
        ({"side": SIDE_MUTE}, "side.plan: expected the output gate.block00"),
        ({"side": SIDE_EARLY}, "side.plan: expected only tensors that were made before"),
        ({"closed": CLOSED_OTHER}, "tail.plan: expected only tensors that were made before"),
        ({"tail": TAIL_OTHER}, "tail.plan: expected image to logits"),
        ({"side": SIDE_HALF}, "adaptor.block00: expected FLOAT"),
    ],
)
def test_plans_that_do_not_fit_each_other_are_refused(changes: dict[str, bytes], told: str) -> None:
    with pytest.raises(BundleError, match=told) as caught:
        made_of(toy(**changes))
    assert "da3 build" in caught.value.fix


def test_a_site_without_its_open_segment_is_refused() -> None:
    with pytest.raises(BundleError, match="block00: expected a segment opened"):
        made_of(toy(), (SIDE, CLOSED, TAIL))


@pytest.mark.parametrize(
    ("slot", "told"),
    [
        (KitSlot("head.scale", (1,), "float32"), "slot head.scale, got a plan without it"),
        (KitSlot("block00.gate.bias", (2,), "float32"), r"expected FLOAT \[2\] .* got FLOAT \[1\]"),
        (KitSlot("head.bias", (4,), "float32"), r"expected FLOAT \[4\] .* got FLOAT \[-1\]"),
    ],
)
def test_a_plan_that_takes_other_slots_than_its_kit_is_refused(slot: KitSlot, told: str) -> None:
    device = simulated()
    others = tuple(one for one in small.SLOTS if one.name != slot.name)
    with pytest.raises(BundleError, match=told):
        program(
            [small.WHOLE],
            lambda _: Plan(device, small.plan_bytes(), what="small"),
            (*others, slot),
        )


def test_a_slot_that_the_kit_does_not_know_is_refused() -> None:
    device = simulated()
    with pytest.raises(BundleError, match=r"made before, got block00\.gate\.bias"):
        program(
            [small.WHOLE],
            lambda _: Plan(device, small.plan_bytes(), what="small"),
            tuple(one for one in small.SLOTS if not one.name.startswith("block00")),
        )


def test_a_slot_of_half_precision_is_refused() -> None:
    device = simulated()
    halved = onnx.load_from_string(
        small.network(**{"block00.gate.bias": value("block00.gate.bias", [1], 10)})
    )
    halved.graph.output[1].type.tensor_type.elem_type = 10
    data = small.plan_bytes(halved.SerializeToString())
    with pytest.raises(BundleError, match=r"bias: expected FLOAT \[1\] .*, got HALF \[1\]"):
        small.whole(device, data)
