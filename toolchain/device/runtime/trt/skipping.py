"""Show that a closed gate skips its block: all gates closed against all gates open.

Rules of this file: what is timed is what requests run (one picture, a bound domain), interleaved
in one run. The gates' states are set through their bias alone, so nothing else differs. A backend
whose conditionals run both branches answers rightly and saves nothing; only the clock shows it. The
proof runs on whatever computes, so tests can check it without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from toolchain.bundle import BackboneManifest
from toolchain.bundle.golden import FORCE
from toolchain.bundle.slots import Slots
from toolchain.core.errors import UsageError
from toolchain.core.timing import WALL, Notify, interleaved
from toolchain.device.runtime.backend import Backend, Binding

Verdict = Literal["skipping", "not skipping"]
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Skipping:
    """Medians in milliseconds per picture, and what they say.

    ``share``: FLOPs of the gated blocks over those of all blocks; ``saved``: ``1 - closed / open``.
    """

    open_ms: float
    closed_ms: float
    share: float

    @property
    def saved(self) -> float:
        """Time that closing every gate saves, as a share of all gates open."""
        return 1 - self.closed_ms / self.open_ms

    @property
    def verdict(self) -> Verdict:
        """Skipping, if at least half of what could be saved is saved."""
        return "skipping" if self.saved >= self.share / 2 else "not skipping"


def gated_share(backbone: BackboneManifest, gates: Sequence[str]) -> float:
    """Return the FLOPs of the gated blocks over those of all blocks."""
    gated = sum(block.flops for block in backbone.blocks if block.name in gates)
    return gated / (backbone.flops or 1)


def forced(slots: Slots, gates: Sequence[str], opened: Collection[str]) -> Slots:
    """Return the slots with exactly the gates in ``opened`` open, whatever the picture."""
    biases = {
        f"{gate}.gate.bias": np.full_like(
            slots[f"{gate}.gate.bias"], FORCE if gate in opened else -FORCE
        )
        for gate in gates
    }
    return {**slots, **biases}


def measure_skipping(
    backend: Backend[Any],
    slots: Slots,
    gates: Sequence[str],
    *,
    size: int,
    share: float,
    rounds: int = ROUNDS,
    notify: Notify = lambda _: None,
) -> Skipping:
    """Time ``backend`` with all of ``gates`` open and all closed on one picture of noise.

    ``slots``: a domain's tensors, or :func:`neutral` ones; ``size``: of the picture in pixels.
    Raises UsageError without gates, and what the backend raises.
    """
    if not gates:
        raise UsageError("expected a model with gates, got one without", fix="nothing can skip")
    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)

    def call(opened: Sequence[str]) -> Callable[[], object]:
        bound: Binding = backend.bind(forced(slots, gates, opened))
        return lambda: backend.run_bound(image, bound, None)

    timings = interleaved(
        {"open": call(gates), "closed": call(())}, rounds=rounds, clock=WALL, notify=notify
    )
    return Skipping(
        open_ms=timings["open"].median_ms, closed_ms=timings["closed"].median_ms, share=share
    )


def neutral(backend: Backend[Any], classes: int) -> dict[str, npt.NDArray[Any]]:
    """Return zeros for every slot, float32, in place of a domain's: for an engine alone.

    ``classes``: the size of a dimension that the engine leaves open.
    """
    return {
        name: np.zeros([d if isinstance(d, int) else classes for d in shape], np.float32)
        for name, shape in backend.slots.items()
    }
