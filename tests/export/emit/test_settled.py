"""What a fixed batch settles is computed beforehand, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from tests.support import toys
from toolchain.bundle.linkage import SWAP_IF
from toolchain.device.boards.target import find
from toolchain.device.runtime.ort.session import Session
from toolchain.export.emit.models import KitOrder, emit
from toolchain.export.emit.rewrite import fix_batch, nodes
from toolchain.export.emit.settled import settle
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.graph.split import in_memory, split
from toolchain.training.adapt.attached import arrays, attach, domain_state

Settable = tuple[Halves, dict[str, Any]]


class Squeezing(nn.Module):
    """Channels last, with a pool that wants them first: PyTorch writes a Gather by a Range."""

    def __init__(self) -> None:
        super().__init__()
        self.grow, self.shrink = nn.Linear(8, 8), nn.Linear(8, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.grow(x))
        scale = self.pool(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.shrink(y * torch.sigmoid(scale))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made() -> Settable:
    torch.manual_seed(0)
    net = toys.LastNet(toys.stem(8), [Squeezing()], 8)
    model = toys.scrambled(attach(net, classes=3, input_shape=(3, 8, 8), rank=4, pool=2))
    return in_memory(split(model)), arrays(domain_state(model))


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in nodes(model)}


def test_shapes_go_and_the_answers_stay_bit_for_bit(made: Settable) -> None:
    halves, slots = made
    plain = fix_batch(link(halves, SWAP_IF), 1)
    assert "Range" in operators(plain), "the toy shows nothing"
    settled = settle(fix_batch(plain, 1))
    assert not operators(settled) & {"Range", "Shape", "Size"}
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    one, other = (
        Session(store.to_bytes(model), exact=True).run({"image": image, **slots})
        for model in (plain, settled)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert settle(fix_batch(settled, 1)).graph.num_nodes() == settled.graph.num_nodes()


@pytest.mark.parametrize("target", ["nano-jp4.6", "xavier-nx-jp5.1", "orin-nano-jp6.2"])
def test_every_parser_reads_it(made: Settable, target: str) -> None:
    order = KitOrder(find(target), "fp32", ("swap", "staged", "static"))
    models = emit(made[0], order, rates={}, ranges={})
    assert models.files


TEXT = """<ir_version: 8, opset_import: ["" : 18]>
free (float[batch, 4] x) => (float[batch, 2, 2] y) {
  shape = Shape(x)
  zero = Constant<value = int64[1] {0}>()
  rows = Gather<axis = 0>(shape, zero)
  two = Constant<value = int64[2] {2, 2}>()
  target = Concat<axis = 0>(rows, two)
  y = Reshape(x, target)
}"""


def test_what_depends_on_a_free_batch_stays() -> None:
    free = settle(ir.from_proto(onnx.parser.parse_model(TEXT)))
    assert {"Shape", "Gather", "Concat"} <= operators(free)
    assert operators(settle(fix_batch(free, 3))) == {"Reshape"}
