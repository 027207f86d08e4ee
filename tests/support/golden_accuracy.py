"""A graph's answers to golden data, compared as an export compares those to pictures."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from toolchain.bundle.golden import Golden
from toolchain.bundle.slots import Slots
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.selftest import run_cases
from toolchain.export.emit.accuracy import Accuracy, measure, runnable
from toolchain.pictures.preprocess import Preprocessing


def measure_golden(
    model: ir.Model | bytes,
    slots: Slots,
    golden: Golden,
    preprocess: Preprocessing,
    *,
    folder: Path | None = None,
) -> Accuracy:
    """Compare with golden data, so in both states of every gate. Raises GraphError."""
    got = run_cases(golden, runnable(model, folder=folder), slots, preprocess, 1)
    return measure(got, Answer(golden.logits, golden.gates, {}))
