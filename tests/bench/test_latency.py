"""Latency by state and block: the states are what they say, and the formula holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.benched import SIDE
from toolchain.bench import latency
from toolchain.bench.latency import break_even
from toolchain.bench.materials import Materials, foreign
from toolchain.bundle.slots import slot_arrays
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.trt.skipping import forced

MS = st.floats(1e-3, 1e3)


@given(MS, MS)
def test_break_even_is_a_rate(gain: float, cost: float) -> None:
    rate = break_even(gain, cost)
    assert rate is not None
    assert 0 <= rate <= 1


@given(MS, MS)
def test_at_break_even_what_is_saved_is_what_it_costs(gain: float, cost: float) -> None:
    assume(cost < gain)
    rate = break_even(gain, cost)
    assert rate is not None
    assert (1 - rate) * gain == pytest.approx(cost)


@given(MS, MS, MS)
def test_a_dearer_gate_must_close_more_often(gain: float, cost: float, more: float) -> None:
    cheap, dear = break_even(gain, cost), break_even(gain, cost + more)
    assert cheap is not None
    assert dear is not None
    assert dear <= cheap


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_a_block_that_gains_nothing_has_no_rate(gain: float) -> None:
    assert break_even(gain, 0.1) is None


def test_states_set_the_gates_they_say(materials: Materials) -> None:
    bundle = materials.open()
    slots = slot_arrays(bundle.blob("slots.safetensors"))
    gates = [b.name for b in bundle.manifest.gates.blocks if f"{b.name}.gate.bias" in slots]
    session = Session(bundle.blob("swap-if.onnx"), folder=materials.backbone)
    image = np.zeros((1, 3, SIDE, SIDE), np.float32)
    for opened in (set(gates), set(gates[1:]), set(gates[::2]), set()):
        logits = session.run({"image": image, **forced(slots, gates, opened)})["gates"][0]
        assert [bool(logit >= 0) for logit in logits] == [gate in opened for gate in gates]


def test_the_part_has_every_state_and_block(materials: Materials, document: dict[str, Any]) -> None:
    part = document["parts"]["latency"]
    states = [f"{kind}, {state}" for kind in ("swap", "static") for state in latency.STATES]
    assert list(part["states"]) == ["plain", *states]
    manifest = materials.open().manifest
    assert list(part["blocks"]) == [b.name for b in manifest.gates.blocks if b.rate is not None]
    assert part["together"]["gain_ms"] > 0
    for block in part["blocks"].values():
        assert set(block) == {"gain", "cost", "break_even"}
        assert set(block["cost"]) == {"ms", "quartiles_ms", "noise_ms", "measurable"}


def test_a_cost_within_the_noise_gives_a_bound(document: dict[str, Any]) -> None:
    for block in document["parts"]["latency"]["blocks"].values():
        gain, cost = block["gain"], block["cost"]
        noise = 0.0 if cost["measurable"] else cost["noise_ms"]
        want = break_even(gain["ms"], max(0.0, cost["ms"] + noise))
        assert block["break_even"] == (want if gain["measurable"] else None)


def test_bundles_alone_have_no_cost_of_a_gate(materials: Materials) -> None:
    part = latency.measure(foreign(materials.bundles), threads=1, rounds=2)
    assert list(part["states"]) == [f"swap, {state}" for state in latency.STATES]
    assert part["together"] is None
    assert all(block["cost"] is None for block in part["blocks"].values())
