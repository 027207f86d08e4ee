"""Measuring a graph of lower precision, and what it may cost."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load as load_safetensors

from tests.support.exported import Exported
from tests.support.golden_accuracy import measure_golden
from toolchain import bundle
from toolchain.bundle.golden import Golden, golden_of
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import PrecisionError
from toolchain.core.words import Precision
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.selftest import difference
from toolchain.export.emit.accuracy import (
    ALLOWED,
    Accuracy,
    answers,
    measure,
    require,
)
from toolchain.export.emit.calibrate import ranges
from toolchain.export.emit.fp16 import to_fp16
from toolchain.export.emit.int8 import to_int8
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, read_halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.pictures.preprocess import normalise

FLOATS = st.floats(-100, 100, width=32)


def answered(logits: object, gates: object = None) -> Answer:
    given = np.asarray(logits, np.float32)
    states = np.zeros((len(given), 0)) if gates is None else np.asarray(gates)
    return Answer(given, states.astype(np.float32), {})


class Held:
    """An exported toy: its halves in memory, pictures, and golden data."""

    def __init__(self, exported: Exported) -> None:
        self.bundle = bundle.open_bundle(exported.bundle)
        self.folder = exported.backbone
        data = self.bundle.blob(self.bundle.names("slots")[0])
        self.slots = load_safetensors(data)
        weights = (self.folder / WEIGHTS_FILE).read_bytes()
        backbone = store.read_graph(self.folder / "backbone.onnx")
        domain = store.from_bytes(self.bundle.blob("domain.onnx"), what="domain")
        self.halves: Halves = read_halves(
            store.load_tensors(backbone, WEIGHTS_FILE, weights),
            store.load_tensors(domain, SLOTS_FILE, data),
        )
        self.golden: Golden = golden_of(self.bundle)
        self.preprocess = self.bundle.manifest.preprocess
        self.test = exported.domain.data.test
        self.train = exported.domain.data.train

    def pictures(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        pixels, _ = self.train.batch(range(len(self.train)))
        return normalise(self.preprocess, pixels)


@pytest.fixture(scope="module")
def held(exported: Exported) -> Held:
    return Held(exported)


def test_the_graph_of_the_bundle_answers_its_golden_data(held: Held) -> None:
    graph = held.bundle.blob("swap-if.onnx")
    found = measure_golden(graph, held.slots, held.golden, held.preprocess, folder=held.folder)
    assert found.cases == len(held.golden)
    assert found.top1 is found.reference_top1 is None
    require("fp32", found, "toy, golden cases")


def test_each_precision_keeps_to_its_allowance_in_both_states_of_every_gate(held: Held) -> None:
    states = held.golden.states().values()
    assert all(state.open and state.closed for state in states)
    plain = link(held.halves, Linkage("swap", "if"))
    amax = ranges(held.halves, held.slots, held.pictures()).amax
    made = {"fp32": plain, "fp16": to_fp16(plain), "int8": to_int8(plain, amax)}
    pixels, labels = held.test.batch(range(len(held.test)))
    images = normalise(held.preprocess, pixels)
    wanted = answers(plain, held.slots, images)
    errors = []
    for precision in get_args(Precision):
        model = made[precision]
        golden = measure_golden(model, held.slots, held.golden, held.preprocess)
        require(precision, golden, "golden")
        found = measure(answers(model, held.slots, images), wanted, labels)
        require(precision, found, "test samples")
        assert found.reference_top1 == (wanted.logits.argmax(1) == labels).mean()
        errors.append(found.error)
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[1] < errors[2]


def test_another_domains_tensors_do_not_pass_for_it(held: Held) -> None:
    plain = link(held.halves, Linkage("swap", "if"))
    slots = {k: v + np.float32(0.5) for k, v in held.slots.items()}
    found = measure_golden(plain, slots, held.golden, held.preprocess)
    with pytest.raises(PrecisionError, match="toy: expected int8 within"):
        require("int8", found, "toy")


SHAPE = st.tuples(st.integers(1, 6), st.integers(2, 4))


@drawn(SHAPE.flatmap(lambda s: st.tuples(*[arrays.arrays(np.float32, s, elements=FLOATS)] * 4)))
def test_measured_as_the_self_test_of_a_device_does(
    given: tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...],
) -> None:
    logits, gates, other, states = given
    none = np.zeros_like(states)
    golden = Golden(np.zeros((len(logits), 1, 1, 3), np.uint8), none, logits, gates, none, (), ())
    got = answered(other, states)
    found, seen = measure(got, answered(logits, gates)), difference(got, golden)
    assert found.error == pytest.approx(seen.agreed_absolute / seen.span)
    assert max(found.error, found.flipped_error) == pytest.approx(seen.max_absolute / seen.span)
    assert round(found.classes_share * found.cases) == seen.top1
    assert round(found.gates_share * found.cases) == seen.gates


@drawn(SHAPE.flatmap(lambda s: arrays.arrays(np.float32, s, elements=FLOATS)))
def test_equal_answers_cost_nothing(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    same = answered(logits, logits)
    found = measure(same, same, logits.argmax(1))
    assert found == Accuracy(len(logits), 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    for precision in get_args(Precision):
        assert found.within(ALLOWED[precision])


def test_a_flipped_gate_is_counted_and_its_logits_stand_apart() -> None:
    wanted = answered([[0, 10], [0, 10]], [[1], [1]])
    found = measure(answered([[0, 10.1], [9, 1]], [[1], [-1]]), wanted)
    assert (found.gates_share, found.classes_share) == (0.5, 0.5)
    assert found.error == pytest.approx(0.01, rel=1e-4)
    assert found.flipped_error == pytest.approx(0.9)


def test_a_graph_that_resolved_its_gates_is_compared_by_logits_alone() -> None:
    found = measure(answered([[0, 1]]), answered([[0, 1]], [[-3]]))
    assert (found.gates_share, found.error) == (0.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("flipped", [False, True])
def test_hostile_answers_that_are_not_finite_pass_nowhere(value: float, *, flipped: bool) -> None:
    wanted = answered([[0, 10]] * 50, [[1]] * 50)
    logits, gates = wanted.logits.copy(), wanted.gates.copy()
    logits[7, 0], gates[7] = value, -1 if flipped else 1
    found = measure(answered(logits, gates), wanted)
    assert not any(found.within(ALLOWED[p]) for p in get_args(Precision))


def test_hostile_answers_to_other_pictures_and_to_none() -> None:
    for got, wanted in itertools.permutations([answered([[1, 2]]), answered([[1, 2]] * 2)]):
        with pytest.raises(PrecisionError, match="same pictures and classes"):
            measure(got, wanted)
    with pytest.raises(PrecisionError, match="one case or more"):
        measure(answered(np.zeros((0, 2))), answered(np.zeros((0, 2))))


FINE = Accuracy(100, None, None, 0.0, 0.0, 0.0, 0.0)
TOO_MUCH = {
    "logits": ("int8", Accuracy(100, None, None, 0.0, 0.0, 0.5, 0.0), "got 0.5"),
    "classes": ("int8", Accuracy(100, None, None, 0.4, 0.0, 0.0, 0.0), "40.0%"),
    "gates": ("fp16", Accuracy(100, None, None, 0.0, 0.3, 0.0, 0.0), "30.0%"),
    "one class at fp32": ("fp32", Accuracy(100, None, None, 0.01, 0.0, 0.0, 0.0), "1.0%"),
    "one gate at fp32": ("fp32", Accuracy(100, None, None, 0.0, 0.01, 0.0, 0.0), "1.0%"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_costs_too_much_is_refused_with_what_to_do(what: str) -> None:
    precision: Precision
    precision, found, said = TOO_MUCH[what]  # type: ignore[assignment]
    require(precision, FINE, "cars")
    with pytest.raises(PrecisionError, match=rf"cars: expected {precision} within.*{said}") as err:
        require(precision, found, "cars")
    assert err.value.fix


def test_one_case_of_a_few_is_allowed_and_two_are_not() -> None:
    one, two = (Accuracy(8, None, None, 0.0, n / 8, 0.0, 0.3) for n in (1, 2))
    assert one.within(ALLOWED["fp16"])
    assert not two.within(ALLOWED["fp16"])
    assert not one.within(ALLOWED["fp32"])
