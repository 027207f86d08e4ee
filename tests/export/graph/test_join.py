"""The join: a block's result plus the upsampled correction, in every layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.support import cases
from toolchain.core.errors import LinkError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph.builder import GraphBuilder
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.join import add_correction, coarse_grid
from toolchain.export.graph.names import Cut
from toolchain.export.graph.store import to_bytes
from toolchain.training.adapt.adaptors import channels_back, channels_first, upsample

F32 = ir.DataType.FLOAT
SHAPES = {
    ("NCHW", (4, 6, 9), (2, 3)),
    ("NCHW", (4, 6, 9), (1, 1)),
    ("NCHW", (4, 6, 9), (6, 9)),
    ("NCHW", (4, 7, 5), (7, 1)),
    ("NHWC", (6, 9, 4), (3, 3)),
    ("NHWC", (6, 9, 4), (1, 1)),
    ("NLC", (12, 4), (1, 1)),
    ("NLC", (1, 4), (1, 1)),
}


@pytest.mark.parametrize(("layout", "shape", "coarse"), sorted(SHAPES))
def test_the_join_is_pytorchs(layout: Any, shape: Any, coarse: Any) -> None:
    """Law: result = channels_back(channels_first(y) + upsample(correction)), bit for bit."""
    cut = Cut("block00", "b", "in.block00", "block.block00", layout, shape, shape, 1)
    sketch = GraphBuilder("join", opset=18)
    sketch.input("y", F32, ["batch", *shape])
    sketch.input(cut.correction, F32, ["batch", 4, *coarse])
    output = SimpleNamespace(name=cut.correction, shape=ir.Shape(["batch", 4, *coarse]))
    halves = SimpleNamespace(domain=SimpleNamespace(graph=SimpleNamespace(outputs=[output])))
    add_correction(sketch, halves, cut, "y", cut.result)  # type: ignore[arg-type]
    sketch.typed(cut.result, F32, ["batch", *shape])
    model = sketch.model([cut.result], ir_version=10, metadata={})
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(3, *shape, generator=draw)
    correction = torch.randn(3, 4, *coarse, generator=draw)
    first = channels_first(y, layout)
    want = channels_back(first + upsample(correction, *first.shape[2:]), layout)
    feeds = {"y": y.numpy(), cut.correction: correction.numpy()}
    got = Session(to_bytes(model)).run(feeds)[cut.result]
    assert np.array_equal(got, want.numpy())


def test_a_free_grid_is_refused() -> None:
    made = cases.made("single")
    cut = made.halves.cuts[0]
    loaded = made.loaded()
    value = next(v for v in loaded.domain.graph.outputs if v.name == cut.correction)
    value.shape = ir.Shape(["batch", 8, "height", "width"])
    halves = Halves(loaded.backbone, loaded.domain, loaded.cuts, loaded.features, loaded.slots)
    with pytest.raises(LinkError, match=r"adaptor\.block00: expected a fixed coarse grid"):
        coarse_grid(halves, cut)
