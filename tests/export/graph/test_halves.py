"""The halves as values: read back, refused when they do not fit."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir
import pytest

from tests.support import cases
from tests.support.cases import Made
from toolchain.core.errors import SplitError
from toolchain.export.graph import store
from toolchain.export.graph.builder import GraphBuilder
from toolchain.export.graph.halves import META_CUTS, read_halves
from toolchain.export.graph.names import IMAGE


def test_halves_of_different_cuts_are_refused(plain: Made) -> None:
    other = cases.made("odd").halves
    with pytest.raises(SplitError, match="cut at different places"):
        read_halves(plain.halves.backbone, other.domain)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"site": "block00"}]', '[{"in_shape": 3, "out_shape": []}]']
)
def test_damaged_metadata_is_refused(plain: Made, text: Any) -> None:
    backbone = store.from_bytes(plain.halves.backbone_graph, what="backbone")
    backbone.metadata_props[META_CUTS] = text
    with pytest.raises(SplitError):
        read_halves(backbone, plain.halves.domain)


def test_a_foreign_model_has_no_cut_points(plain: Made) -> None:
    builder = GraphBuilder("foreign", opset=18)
    builder.input(IMAGE, ir.DataType.FLOAT, [1, 3])
    builder.node("Identity", [IMAGE], "y")
    builder.typed("y", ir.DataType.FLOAT, [1, 3])
    foreign = builder.model(["y"], ir_version=10, metadata={})
    with pytest.raises(SplitError, match=r"foreign.*no cut points[\s\S]*da3-export"):
        read_halves(foreign, plain.halves.domain)


def test_cut_points_survive_writing(plain: Made) -> None:
    """Law: read_halves(write(halves)) has the cuts, features and slots of halves."""
    halves = plain.loaded()
    assert halves.cuts == plain.halves.cuts
    assert halves.features == plain.halves.features
    assert halves.slots == plain.halves.slots
    row = json.loads(plain.halves.backbone.metadata_props[META_CUTS])[0]
    assert row["site"] == "block00"
    assert row["flops"] == plain.halves.cuts[0].flops > 0
