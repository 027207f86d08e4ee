"""Counting what autograd keeps, against bytes known by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.support import toys
from tests.support.steps import BATCH, measured
from toolchain.training.lean.ledger import stored

FLOATS = 1000


class Product(nn.Module):
    """Multiplies a parameter and a buffer with what it is given."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FLOATS))
        self.register_buffer("factor", torch.ones(FLOATS))


def counted(run: Callable[[Product], Tensor], *ignored: Tensor) -> int:
    model = Product()
    return stored(model, lambda: run(model).sum(), ignored=ignored).bytes


def test_a_map_that_several_layers_keep_counts_once() -> None:
    x = torch.rand(FLOATS)
    assert counted(lambda m: m.weight * x + m.weight * x) == 4 * FLOATS


def test_a_view_counts_with_its_whole_storage() -> None:
    x = torch.rand(10, FLOATS)
    assert counted(lambda m: m.weight * x[3]) == 10 * 4 * FLOATS


def test_parameters_and_buffers_are_there_anyway() -> None:
    assert counted(lambda m: m.weight * m.factor) == 0


def test_what_is_made_from_a_parameter_is_not() -> None:
    # x requires grad, so the doubled weight is kept for it; x itself for the weight.
    x = torch.rand(FLOATS, requires_grad=True)
    assert counted(lambda m: (2 * m.weight) * x) == 2 * 4 * FLOATS


def test_pictures_are_held_by_the_loader() -> None:
    x = torch.rand(FLOATS)
    assert counted(lambda m: m.weight * x, x) == 0


def test_maps_are_booked_on_the_layer_that_keeps_them() -> None:
    ledger = measured(toys.attached("plain", lean=True, pool=4), "plain")
    c, h, w = toys.TOYS["plain"].input_shape
    assert ledger.by_layer["block00.adaptor.reduce"] == BATCH * 8 * 3 * 3 * 4  # pooled, fp32
    # One bit per element of the first block's inner ReLU and of the one behind the addition.
    assert ledger.by_layer["blocks.0"] >= 2 * BATCH * 8 * h * w // 8
    assert ledger.bytes == sum(ledger.by_layer.values())
    assert ledger.largest(1)[0][1] == max(ledger.by_layer.values())
    assert c == 3


def test_a_closed_gate_keeps_nothing_of_its_block() -> None:
    model = toys.attached("plain", lean=True)
    opened, closed = measured(model, "plain"), measured(model, "plain", rows=0)
    assert closed.by_layer["blocks.0"] < opened.by_layer["blocks.0"]
    assert closed.bytes < opened.bytes


def test_the_model_is_left_without_hooks() -> None:
    model = toys.attached("plain", lean=True)
    measured(model, "plain")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
