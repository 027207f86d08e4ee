"""One call for both forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import cases
from tests.support.cases import close
from toolchain.bundle.linkage import FORMS, Form, Linkage
from toolchain.device.runtime.backend import answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_is_answered_in_order(form: Form, batch: Any) -> None:
    made = cases.made("plain")
    model = made.run(Linkage("swap", form))
    images = made.case.images(7, seed=4).numpy()
    result = model.run(images[:batch], made.slots)
    alone = [model.run(images[i : i + 1], made.slots) for i in range(batch)]
    assert result.logits.shape == (batch, 5)
    assert result.gates.shape == (batch, 2)
    assert close(result.logits, np.concatenate([a.logits for a in alone]), relative=1e-5)


def test_a_static_model_ignores_slots() -> None:
    made = cases.made("plain")
    model = made.run(Linkage("static", "if"))
    images = made.case.images(2).numpy()
    other = {name: array + 1 for name, array in made.slots.items()}
    assert np.array_equal(model.run(images, {}).logits, model.run(images, other).logits)


def test_tensors_of_other_domains_are_not_passed_on() -> None:
    """Extra entries of a slots mapping are no inputs of the model and do no harm."""
    made = cases.made("plain")
    model = made.run(Linkage("swap", "rows"))
    images = made.case.images(2).numpy()
    more = {**made.slots, "block09.adaptor.reduce.weight": np.ones(3, np.float32)}
    assert np.array_equal(model.run(images, more).logits, model.run(images, made.slots).logits)


def test_a_model_without_gates_answers_with_none() -> None:
    made = cases.made("plain-da2")
    result = made.run(Linkage("swap", "rows")).run(made.case.images(3).numpy(), made.slots)
    assert result.gates.shape == (3, 0)


def test_outputs_are_sorted_into_an_answer() -> None:
    values = {
        "logits": np.ones((2, 3), np.float32),
        "gate.a": np.zeros((2, 1), np.float32),
        "gate.b": np.ones((2, 1), np.float32),
        "out.block00": np.ones((2, 4), np.float32),
    }
    result = answer(values, ["gate.a", "gate.b"])
    assert result.gates.tolist() == [[0, 1], [0, 1]]
    assert set(result.taps) == {"out.block00"}
    assert answer(values).gates.shape == (2, 0)
