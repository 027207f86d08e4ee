"""Staging: segments without control flow, whose names and types fit end to end."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from tests.support import cases
from tests.support.cases import Made, walk
from toolchain.core.errors import LinkError
from toolchain.export.graph.names import BACKBONE, IMAGE, LOGITS
from toolchain.export.graph.stage import Staged, stage
from toolchain.export.graph.store import to_bytes


def models(staged: Staged) -> list[tuple[str, ir.Model]]:
    pairs = []
    for one in staged.sites:
        pairs += [(one.cut.site, m) for m in (one.side, one.opened, one.closed) if m is not None]
    return [*pairs, ("tail", staged.tail)]


def test_segments_hold_no_control_flow_and_no_slot(made: Made) -> None:
    """Slots are inputs of segments; the host alone decides."""
    for _, model in models(stage(made.halves)):
        kinds = {node.op_type for node in walk(model.graph)}
        assert not {"If", "Where", "NonZero", "ScatterND", "GreaterOrEqual"} & kinds
        assert not set(model.graph.initializers) & set(made.halves.slots)


def test_a_stage_per_adapted_block_and_a_closed_one_per_gate(made: Made) -> None:
    staged = stage(made.halves)
    assert [s.cut for s in staged.sites] == list(made.halves.adapted)
    closed = [s.cut.gate for s in staged.sites if s.closed is not None]
    assert tuple(closed) == made.halves.gates


def test_what_a_segment_reads_was_given_before_with_that_type(made: Made) -> None:
    """Law: segments fit end to end by name, dtype and shape, from the picture to the logits."""
    image = next(v for v in made.halves.backbone.graph.inputs if v.name == IMAGE)
    known = {IMAGE: (image.dtype, str(image.shape))}
    slots = set(made.halves.slots)
    for _, model in models(stage(made.halves)):
        for value in model.graph.inputs:
            if value.name not in slots:
                assert known[value.name or ""] == (value.dtype, str(value.shape)), value.name
        for value in model.graph.outputs:
            known[value.name or ""] = (value.dtype, str(value.shape))
    assert LOGITS in known


def test_closed_segments_hold_no_weights(made: Made) -> None:
    for one in stage(made.halves).sites:
        if one.closed is not None:
            assert not any(n.startswith(BACKBONE) for n in one.closed.graph.initializers)
            assert any(n.startswith(BACKBONE) for n in one.opened.graph.initializers)


def test_every_weight_lies_in_one_segment(made: Made) -> None:
    """Law: segments share no weight and miss none."""
    names = [
        name
        for _, model in models(stage(made.halves))
        for name in model.graph.initializers
        if name.startswith(BACKBONE)
    ]
    expected = [n for n in made.halves.backbone.graph.initializers if n.startswith(BACKBONE)]
    assert sorted(names) == sorted(expected)


def test_onnx_checks_every_segment(made: Made, tmp_path: Path) -> None:
    for index, (_, model) in enumerate(models(stage(made.halves))):
        path = made.folder / f"segment{index}.onnx"
        path.write_bytes(to_bytes(model))
        onnx.checker.check_model(str(path), full_check=True)


def test_a_value_that_is_no_cut_point_cannot_cross() -> None:
    with pytest.raises(LinkError, match=r"segment 'block0\d/opened' reads .*no cut point"):
        stage(cases.two_inputs())


def test_staging_is_deterministic() -> None:
    """Law: the same halves give the same segments, byte for byte."""
    made = cases.made("plain")
    first, second = ([to_bytes(model) for _, model in models(stage(made.halves))] for _ in range(2))
    assert first == second
