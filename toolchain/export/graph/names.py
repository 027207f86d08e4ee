"""The names that captured, split and linked graphs share.

Rules of this file: constants and frozen values only; no torch, so that a linker runs without it.

Per site ``s`` (``block03``) the cut points are ``in.s`` (the block's input, unless that is an
earlier site's result), ``block.s`` (the frozen block's output), ``adaptor.s`` (the correction on
its coarse grid), ``gate.s`` (logits ``[N, 1]``) and ``out.s`` (the adapted output).
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.bundle import graphs

IMAGE, FEATURES, LOGITS, GATES = "image", "features", "logits", "gates"
BACKBONE = "backbone."
WEIGHTS_FILE, SLOTS_FILE = graphs.WEIGHTS_NAME, graphs.SLOTS_NAME
BATCH, CLASSES = "batch", "classes"
# Their first dimension is the class count.
HEAD_SLOTS = ("head.bias", "head.weight")


@dataclass(frozen=True, slots=True)
class Opset:
    """An ONNX dialect: opset of the default domain, and IR version."""

    opset: int
    ir_version: int


# Both are the oldest that the exporter writes without converting: the widest reach, no translation.
DIALECT = Opset(opset=18, ir_version=10)


@dataclass(frozen=True, slots=True)
class Cut:
    """One site as the graphs know it.

    ``site``: short name; ``module``: the block's name in PyTorch. ``input``, ``output``: names of
    the frozen block's input and output. ``layout``: where the channels are. Shapes are without the
    batch. ``flops``: multiply-adds per sample. What a domain adds has names derived from ``site``.
    """

    site: str
    module: str
    input: str
    output: str
    layout: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int

    @property
    def correction(self) -> str:
        """Name of the adaptor's answer."""
        return f"adaptor.{self.site}"

    @property
    def gate(self) -> str:
        """Name of the gate's logits."""
        return f"gate.{self.site}"

    @property
    def result(self) -> str:
        """Name of the adapted output."""
        return f"out.{self.site}"

    @property
    def gateable(self) -> bool:
        """Whether a closed gate can pass the input on."""
        return self.in_shape == self.out_shape
