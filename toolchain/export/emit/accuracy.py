"""What a graph of lower precision changes against the fp32 one, and how much it may change.

Rules of this file: it runs graphs with onnxruntime on the CPU and compares answers. It changes no
graph and chooses no pictures. This emulation shows the effect of rounding weights and maps to the
types in the graph. It does not show what happens inside a device's node: onnxruntime's CPU provider
computes an fp16 node in fp32 and rounds between nodes, while a device may sum in fp16 inside a
convolution, in another order, and fuse nodes. The device's own self-test over the golden data shows
that.

A precision is judged by what its users notice: how many pictures get another class, how many find a
gate in another state, and how much accuracy is lost. Each of the three is a share of few pictures,
so each has its 95 per cent interval. The precision is refused if such an interval lies wholly above
what :data:`ALLOWED` lets it cost: then the pictures show that it costs too much. The error of the
logits decides nothing of itself, as a net with large logits and wide gaps between them bears one
that another does not; it is measured and told, and a bound of the user's own holds.
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
from toolchain.export.graph import store

Z_95 = 1.959964
"""How many standard deviations 95 per cent of a normal distribution lie within."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a precision may cost, as shares of pictures: other classes, other gates, accuracy."""

    classes: float
    gates: float
    lost: float


# "Ranges of int8" in docs/results.md says what resnet20 changes on validation pictures: fp16 hardly
# anything, int8 another class in less than 1 %. Allowed is some times that, as other nets (those
# with depthwise convolutions) change more.
ALLOWED: Mapping[Precision, Allowance] = MappingProxyType(
    {
        "fp32": Allowance(0.0, 0.0, 0.0),
        "fp16": Allowance(0.01, 0.02, 0.002),
        "int8": Allowance(0.03, 0.08, 0.005),
    }
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A share that was measured, and the ends of its 95 per cent interval."""

    share: float
    low: float
    high: float


def share_of(count: int, cases: int) -> Interval:
    """Return ``count`` of ``cases`` with its Wilson interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927).
    """
    share, weight = count / cases, Z_95**2 / cases
    middle = (share + weight / 2) / (1 + weight)
    half = Z_95 * np.sqrt(share * (1 - share) / cases + weight / (4 * cases)) / (1 + weight)
    # Rounding may leave the end of none, or of all, a hair beyond it.
    low = 0.0 if count == 0 else float(middle - half)
    return Interval(share, low, 1.0 if count == cases else float(middle + half))


def loss_of(lost: int, gained: int, cases: int) -> Interval:
    """Return the accuracy lost, from the cases that became wrong and those that became right.

    Both answers are to the same pictures, so the interval is that of paired shares: Bonett and
    Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", Journal of Educational and Behavioral Statistics 37 (2012).
    """
    worse, better = (lost + 1) / (cases + 2), (gained + 1) / (cases + 2)
    half = Z_95 * np.sqrt((worse + better - (worse - better) ** 2) / (cases + 2))
    middle = worse - better
    return Interval((lost - gained) / cases, float(middle - half), float(middle + half))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A graph's answers beside the reference's.

    ``cases``; ``top1``: share that is right, None without labels, ``reference_top1`` likewise;
    ``lost`` and ``gained``: cases that only the reference, and that only the graph answers right;
    ``classes``, ``gates``: cases with another best class, and with a gate in another state;
    ``error``: largest error of a logit relative to the reference's range where all gates agree;
    ``flipped_error``: the same where one does not, as a whole block comes or goes there.
    """

    cases: int
    top1: float | None
    reference_top1: float | None
    lost: int
    gained: int
    classes: int
    gates: int
    error: float
    flipped_error: float

    @property
    def worst(self) -> float:
        """The largest error of a logit, wherever it is."""
        return max(self.error, self.flipped_error)

    def faults(self, precision: Precision, bound: float | None = None) -> list[str]:
        """Return what is shown to cost more than ``precision`` may; nothing if it may be used.

        ``bound``: the largest error of a logit that the user allows.
        """
        allowed = ALLOWED[precision]
        judged = (
            ("another class", share_of(self.classes, self.cases), allowed.classes),
            ("another gate", share_of(self.gates, self.cases), allowed.gates),
            ("accuracy lost", loss_of(self.lost, self.gained, self.cases), allowed.lost),
        )
        faults = [
            f"{what}: expected at most {most:.1%}, got {got.share:.1%} "
            f"(95 %: {got.low:.1%} to {got.high:.1%})"
            for what, got, most in judged
            if got.low > most
        ]
        if not np.isfinite(self.worst):
            faults.append("expected finite logits, got some that are not")
        elif bound is not None and self.worst > bound:
            faults.append(
                f"error of a logit: expected at most {bound:g} of the range, got {self.worst:.2g}"
            )
        return faults


def answers(model: ir.Model | bytes, slots: Slots, images: Floats) -> Answer:
    """Run a linked graph over ``images``, float32 ``[N, C, H, W]``, normalised.

    Raises GraphError.
    """
    return runnable(model).run(images, slots)


def runnable(model: ir.Model | bytes, *, folder: Path | None = None) -> LinkedModel:
    """Return a linked graph ready to run on the CPU, node by node. Raises GraphError.

    Nothing is optimised: onnxruntime 1.31 moves Q/DQ over other nodes and fuses them, so that
    EfficientNet-Lite0 with quantised activations alone is off by 0.24 of the logits' range, where
    its nodes as written are off by 0.03.
    """
    data = model if isinstance(model, bytes) else store.to_bytes(model)
    return LinkedModel(Session(data, folder=folder, exact=True, what="graph under measurement"))


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
    right = np.zeros(len(off), np.bool_) if labels is None else best == labels
    reference_right = np.zeros(len(off), np.bool_) if labels is None else reference_best == labels
    return Accuracy(
        cases=len(off),
        top1=None if labels is None else float(right.mean()),
        reference_top1=None if labels is None else float(reference_right.mean()),
        lost=int((reference_right & ~right).sum()),
        gained=int((right & ~reference_right).sum()),
        classes=int((best != reference_best).sum()),
        gates=int(flipped.sum()),
        error=float(off[~flipped].max(initial=0.0)),
        flipped_error=float(off[flipped].max(initial=0.0)),
    )


def require(
    precision: Precision, cost: Accuracy, what: str, *, bound: float | None = None, fix: str = ""
) -> None:
    """Raise PrecisionError where ``cost`` is shown to be above what ``precision`` may cost.

    ``what`` says what was measured; ``bound`` as in :meth:`Accuracy.faults`; ``fix``: what else to
    do than to take another precision.
    """
    faults = cost.faults(precision, bound)
    if not faults:
        return
    fixes = {
        "fp32": "report the graph: fp32 answers as the exported graph does",
        "fp16": "take fp32 on that target (--precision fp32)",
        "int8": "take fp32 or, where it is not refused, fp16 on that target (--precision)",
    }
    raise PrecisionError(
        f"{what}: {precision} costs too much over {cost.cases} pictures: {'; '.join(faults)}",
        fix=f"{fix}; or {fixes[precision]}" if fix else fixes[precision],
    )


def _flipped(got: Answer, reference: Answer) -> npt.NDArray[np.bool_]:
    if got.gates.shape != reference.gates.shape:
        return np.zeros(len(reference.logits), np.bool_)
    flipped: npt.NDArray[np.bool_] = ((got.gates >= 0) != (reference.gates >= 0)).any(axis=1)
    return flipped
