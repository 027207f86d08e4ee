"""How far a graph of lower precision is from the fp32 one, and how far it may be.

Rules of this file: it runs graphs with onnxruntime on the CPU and compares answers. It changes no
graph. This emulation shows the effect of rounding weights and maps to the types in the graph. It
does not show what happens inside a device's node: onnxruntime's CPU provider computes an fp16 node
in fp32 and rounds between nodes, while a device may sum in fp16 inside a convolution, in another
order, and fuse nodes. The device's own self-test over the golden data shows that.

``ALLOWED`` is about twice the worst that was measured over cars, digits, chirps and cells on
resnet20, on test pictures and golden cases. fp16: error 0.0005 of the range (4 times that allowed,
as deeper backbones round more often), no other class, another gate in 0.5 % of the cases. int8 with
the ranges of one domain or of the four joined: 0.030, 1.3 %, 3.5 %. Where a gate flips, a whole
block comes or goes and logits move by up to 0.27 of their range whatever the precision, so such
cases are counted and stand apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.core.errors import PrecisionError
from toolchain.core.words import Precision
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.selftest import Allowance
from toolchain.export.graph import store

ALLOWED: Mapping[Precision, Allowance] = MappingProxyType(
    {
        "fp32": Allowance(1e-4, 0.0, 0.0),
        "fp16": Allowance(0.002, 0.01, 0.02),
        "int8": Allowance(0.06, 0.03, 0.08),
    }
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A graph's answers beside the reference's.

    ``cases``; ``top1``: share that is right, None without labels, ``reference_top1`` likewise;
    ``classes_share``, ``gates_share``: share of cases with another best class, with a gate in
    another state; ``error``: largest error of a logit relative to the reference's range where all
    gates agree; ``flipped_error``: the same where one does not.
    """

    cases: int
    top1: float | None
    reference_top1: float | None
    classes_share: float
    gates_share: float
    error: float
    flipped_error: float

    def within(self, allowed: Allowance) -> bool:
        """Whether all figures are allowed; answers that are not finite never are.

        If a share above zero is allowed, one case always is: golden data have a dozen cases, and
        one picture whose gate is near its threshold says nothing about the others.
        """
        return (
            self.error <= allowed.tolerance
            and np.isfinite(self.flipped_error)
            and self._few(self.classes_share, allowed.classes_share)
            and self._few(self.gates_share, allowed.gates_share)
        )

    def _few(self, share: float, allowed: float) -> bool:
        # One case is 1 / cases. The half above it keeps rounding out of the comparison.
        return share <= max(allowed, 1.5 / self.cases if allowed else 0.0)


def answers(model: ir.Model | bytes, slots: Slots, images: Floats) -> Answer:
    """Run a linked graph over ``images``, float32 ``[N, C, H, W]``, normalised.

    Raises GraphError.
    """
    return runnable(model).run(images, slots)


def runnable(model: ir.Model | bytes, *, folder: Path | None = None) -> LinkedModel:
    """Return a linked graph ready to run on the CPU. Raises GraphError."""
    data = model if isinstance(model, bytes) else store.to_bytes(model)
    return LinkedModel(Session(data, folder=folder, what="graph under measurement"))


def measure(
    got: Answer, reference: Answer, labels: npt.NDArray[np.integer] | None = None
) -> Accuracy:
    """Compare answers with those of the fp32 swap graph to the same pictures.

    ``labels``: int ``[N]``. A graph that has resolved gates (``static``) is asked for none: its
    ``gates`` are narrower, and only logits are compared. Raises PrecisionError for no cases.
    """
    if not len(reference.logits) or got.logits.shape != reference.logits.shape:
        raise PrecisionError(
            f"expected answers {reference.logits.shape}, one case or more, got {got.logits.shape}",
            fix="measure both graphs over the same pictures and classes",
        )
    flipped = _flipped(got, reference)
    reference_logits = reference.logits.astype(np.float64)
    off = np.abs(got.logits - reference_logits).max(axis=1)
    off[~np.isfinite(off)] = np.inf
    off = off / (float(np.ptp(reference_logits)) or 1.0)
    best, reference_best = got.logits.argmax(axis=1), reference.logits.argmax(axis=1)
    return Accuracy(
        len(off),
        None if labels is None else float((best == labels).mean()),
        None if labels is None else float((reference_best == labels).mean()),
        float((best != reference_best).mean()),
        float(flipped.mean()),
        float(off[~flipped].max(initial=0.0)),
        float(off[flipped].max(initial=0.0)),
    )


def require(precision: Precision, cost: Accuracy, what: str, *, fix: str = "") -> None:
    """Raise PrecisionError unless ``cost`` lies within what ``precision`` may change.

    ``what`` says what was measured: ``cars, test samples``.
    """
    allowed = ALLOWED[precision]
    if cost.within(allowed):
        return
    fixes = {
        "fp32": "report the graph: fp32 answers as the exported graph does",
        "fp16": "build in fp32; a backbone with very large activations does not bear fp16",
        "int8": "this domain does not bear int8: choose fp16, or train it further",
    }
    raise PrecisionError(
        f"{what}: expected {precision} within {allowed.tolerance:g} of the logits' range, another "
        f"class in at most {allowed.classes_share:.1%} and another gate in at most "
        f"{allowed.gates_share:.1%} of {cost.cases} cases, got {cost.error:.2g}, "
        f"{cost.classes_share:.1%} and {cost.gates_share:.1%}",
        fix=fix or fixes[precision],
    )


def _flipped(got: Answer, reference: Answer) -> npt.NDArray[np.bool_]:
    if got.gates.shape != reference.gates.shape:
        return np.zeros(len(reference.logits), np.bool_)
    flipped: npt.NDArray[np.bool_] = ((got.gates >= 0) != (reference.gates >= 0)).any(axis=1)
    return flipped
