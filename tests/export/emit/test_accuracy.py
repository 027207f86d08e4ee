"""Measuring a graph of lower precision, and what it may cost."""

from __future__ import annotations

import dataclasses
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
    Z_95,
    Accuracy,
    answers,
    loss_of,
    measure,
    require,
    share_of,
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
    array = np.asarray(logits, np.float32)
    states = np.zeros((len(array), 0)) if gates is None else np.asarray(gates)
    return Answer(array, states.astype(np.float32), {})


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
    accuracy = measure_golden(graph, held.slots, held.golden, held.preprocess, folder=held.folder)
    assert accuracy.cases == len(held.golden)
    assert accuracy.top1 is accuracy.reference_top1 is None
    require("fp32", accuracy, "toy, golden cases")


def test_each_precision_keeps_to_its_allowance_in_both_states_of_every_gate(held: Held) -> None:
    states = held.golden.states().values()
    assert all(state.open and state.closed for state in states)
    plain = link(held.halves, Linkage("swap", "if"))
    amax = ranges(held.halves, held.slots, held.pictures()).amax
    made = {"fp32": plain, "fp16": to_fp16(plain), "int8": to_int8(plain, amax)}
    pixels, labels = held.test.batch(range(len(held.test)))
    images = normalise(held.preprocess, pixels)
    reference = answers(plain, held.slots, images)
    errors = []
    for precision in get_args(Precision):
        model = made[precision]
        golden = measure_golden(model, held.slots, held.golden, held.preprocess)
        require(precision, golden, "golden")
        accuracy = measure(answers(model, held.slots, images), reference, labels)
        require(precision, accuracy, "test samples")
        assert accuracy.reference_top1 == (reference.logits.argmax(1) == labels).mean()
        errors.append(accuracy.error)
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[1] < errors[2]


def test_another_domains_tensors_do_not_pass_for_it(held: Held) -> None:
    plain = link(held.halves, Linkage("swap", "if"))
    slots = {k: v + np.float32(0.5) for k, v in held.slots.items()}
    accuracy = measure_golden(plain, slots, held.golden, held.preprocess)
    with pytest.raises(PrecisionError, match=r"toy: int8 costs too much.*another gate"):
        require("int8", accuracy, "toy")


SHAPE = st.tuples(st.integers(1, 6), st.integers(2, 4))


@drawn(SHAPE.flatmap(lambda s: st.tuples(*[arrays.arrays(np.float32, s, elements=FLOATS)] * 4)))
def test_measured_as_the_self_test_of_a_device_does(
    given: tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...],
) -> None:
    logits, gates, other, states = given
    none = np.zeros_like(states)
    golden = Golden(np.zeros((len(logits), 1, 1, 3), np.uint8), none, logits, gates, none, (), ())
    got = answered(other, states)
    accuracy, deviation = measure(got, answered(logits, gates)), difference(got, golden)
    assert accuracy.error == pytest.approx(deviation.agreed_absolute / deviation.span)
    assert max(accuracy.error, accuracy.flipped_error) == pytest.approx(
        deviation.max_absolute / deviation.span
    )
    assert (accuracy.classes, accuracy.gates) == (deviation.top1, deviation.gates)


@drawn(SHAPE.flatmap(lambda s: arrays.arrays(np.float32, s, elements=FLOATS)))
def test_equal_answers_cost_nothing(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    same = answered(logits, logits)
    accuracy = measure(same, same, logits.argmax(1))
    assert accuracy == Accuracy(len(logits), 1.0, 1.0, 0, 0, 0, 0, 0.0, 0.0)
    for precision in get_args(Precision):
        assert accuracy.faults(precision, 0.0) == []


def test_a_flipped_gate_is_counted_and_its_logits_stand_apart() -> None:
    reference = answered([[0, 10], [0, 10]], [[1], [1]])
    accuracy = measure(answered([[0, 10.1], [9, 1]], [[1], [-1]]), reference)
    assert (accuracy.gates, accuracy.classes) == (1, 1)
    assert accuracy.error == pytest.approx(0.01, rel=1e-4)
    assert accuracy.flipped_error == pytest.approx(0.9)


def test_a_graph_that_resolved_its_gates_is_compared_by_logits_alone() -> None:
    accuracy = measure(answered([[0, 1]]), answered([[0, 1]], [[-3]]))
    assert (accuracy.gates, accuracy.error) == (0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("flipped", [False, True])
def test_hostile_answers_that_are_not_finite_pass_nowhere(value: float, *, flipped: bool) -> None:
    reference = answered([[0, 10]] * 50, [[1]] * 50)
    logits, gates = reference.logits.copy(), reference.gates.copy()
    logits[7, 0], gates[7] = value, -1 if flipped else 1
    accuracy = measure(answered(logits, gates), reference)
    for precision in get_args(Precision):
        assert "finite" in str(accuracy.faults(precision))


def test_hostile_answers_to_other_pictures_and_to_none() -> None:
    for got, reference in itertools.permutations([answered([[1, 2]]), answered([[1, 2]] * 2)]):
        with pytest.raises(PrecisionError, match="same pictures and classes"):
            measure(got, reference)
    with pytest.raises(PrecisionError, match="one case or more"):
        measure(answered(np.zeros((0, 2))), answered(np.zeros((0, 2))))


def cost(cases: int = 100, **counts: float) -> Accuracy:
    """Figures of ``cases`` pictures: 0 but for ``counts``."""
    fine = Accuracy(cases, 1.0, 1.0, 0, 0, 0, 0, 0.0, 0.0)
    return dataclasses.replace(fine, **counts)  # type: ignore[arg-type]


TOO_MUCH: dict[str, tuple[Precision, Accuracy, str]] = {
    "classes": ("int8", cost(classes=40), r"another class: expected at most 3\.0%, got 40\.0%"),
    "gates": ("fp16", cost(gates=30), r"another gate: expected at most 2\.0%, got 30\.0%"),
    "accuracy": ("int8", cost(lost=20), r"accuracy lost: expected at most 0\.5%, got 20\.0%"),
    "one class at fp32": ("fp32", cost(classes=1), r"got 1\.0%"),
    "one gate at fp32": ("fp32", cost(gates=1), r"got 1\.0%"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_costs_too_much_is_refused_with_what_to_do(what: str) -> None:
    precision, accuracy, words = TOO_MUCH[what]
    require(precision, cost(), "cars")
    with pytest.raises(PrecisionError, match=rf"cars: {precision} costs too much.*{words}") as err:
        require(precision, accuracy, "cars")
    assert "--precision" in err.value.fix or precision == "fp32"
    # Whoever follows the fix of one precision does not come back to it.
    assert f"take {precision}" not in err.value.fix


def test_an_error_of_logits_alone_refuses_nothing_but_beyond_the_users_own_bound() -> None:
    """No class, no gate and no accuracy: the precision may be used, whatever its logits moved."""
    moved = cost(error=0.3, flipped_error=0.4)
    require("fp16", moved, "cars")
    require("fp16", moved, "cars", bound=0.4)
    with pytest.raises(PrecisionError, match=r"expected at most 0\.39 of the range, got 0\.4"):
        require("fp16", moved, "cars", bound=0.39)


@pytest.mark.parametrize(("classes", "refused"), [(0, False), (8, True), (7, False)])
def test_a_share_is_refused_once_its_interval_lies_above(classes: int, *, refused: bool) -> None:
    """Of 400 pictures: 7 may be 1 per cent of all by chance, 8 may not."""
    assert bool(cost(400, classes=classes).faults("fp16")) is refused


def test_what_became_right_counts_against_what_became_wrong() -> None:
    assert cost(400, lost=20).faults("int8")
    assert not cost(400, lost=20, gained=15).faults("int8")


def test_intervals_are_those_of_their_sources() -> None:
    """Wilson's for 8 of 400 (Newcombe 1998 has 81 of 263), Bonett and Price's by hand."""
    known = share_of(81, 263)
    assert (known.low, known.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    loss = loss_of(0, 0, 400)
    half = Z_95 * (2 / 402 / 402) ** 0.5
    assert (loss.share, loss.low, loss.high) == pytest.approx((0, -half, half))


@drawn(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share(pair: tuple[int, int]) -> None:
    interval = share_of(*pair)
    assert 0 <= interval.low <= interval.share <= interval.high <= 1
