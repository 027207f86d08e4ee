"""The names that graphs share."""

from __future__ import annotations

from dataclasses import replace

from toolchain.export.graph.names import DIALECT, Cut

CUT = Cut("block03", "layer1.2", "out.block02", "block.block03", "NCHW", (8, 4, 4), (8, 4, 4), 10)


def test_what_a_domain_adds_is_named_after_the_site() -> None:
    assert (CUT.correction, CUT.gate, CUT.result) == (
        "adaptor.block03",
        "gate.block03",
        "out.block03",
    )


def test_a_gate_needs_one_shape_on_both_sides() -> None:
    assert CUT.gateable
    assert not replace(CUT, out_shape=(16, 2, 2)).gateable


def test_the_dialect_of_a_target_is_stated() -> None:
    """Changing it changes every graph's bytes: that is a decision, not an accident."""
    assert (DIALECT.opset, DIALECT.ir_version) == (18, 10)
