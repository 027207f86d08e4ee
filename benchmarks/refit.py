"""Refitting: replacing a domain's weights inside an engine.

Rules of this file: only the slots are refittable (``REFIT_INDIVIDUAL``), never the whole network:
that was measured to be 1.7 to 2 times slower (NVIDIA/TensorRT #2936, #3099). A refit that fails may
have been applied in part, so nobody may use the engine after one. Whoever refits keeps the old
weights and checks the answers afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.core.errors import EngineError, first_few
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.parse import ParsedNetwork


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which slots the network knows as weights of that name, and which it does not."""

    known: tuple[str, ...]
    unknown: tuple[str, ...]


def mark(network: ParsedNetwork, slots: Iterable[str]) -> Coverage:
    """Mark ``slots`` as refittable; TensorRT says of each whether it has such weights.

    Needs no device. Raises EngineError where single weights cannot be marked.
    """
    trt = network.trt
    if not trt.features.refit_individual:
        raise EngineError(
            f"expected a TensorRT that refits single weights, got {trt.name} {trt.build}",
            fix="build the slots as inputs (flavour swap)",
        )
    refittable = {name: network.definition.mark_weights_refittable(name) for name in sorted(slots)}
    return Coverage(
        tuple(name for name, known in refittable.items() if known),
        tuple(name for name, known in refittable.items() if not known),
    )


def refit(trt: TensorRT, engine: Any, slots: Slots) -> None:
    """Replace all ``slots`` in ``engine``, fp32 arrays by name.

    Raises EngineError if the engine lacks one, needs more than these, or fails under way; then it
    may hold a mixture, and must not run before a refit has succeeded.
    """
    with trt.journal.watch() as messages:
        refitter = trt.module.Refitter(engine, trt.logger)
        # Weights are read when the engine is refitted, so the arrays must live until then.
        arrays = {name: np.ascontiguousarray(slots[name], np.float32) for name in sorted(slots)}
        refused = [
            name
            for name, array in arrays.items()
            if not refitter.set_named_weights(name, trt.module.Weights(array))
        ]
        missing = [] if refused else list(refitter.get_missing_weights())
        done = not refused and not missing and refitter.refit_cuda_engine()
    if done:
        return
    reason = messages.first or "it gives no reason"
    if refused:
        reason = f"it has no weights {first_few(refused, 5)} of these shapes: {reason}"
    elif missing:
        reason = f"it also needs {first_few(missing, 5)}"
    raise EngineError(
        f"expected {len(arrays)} slots to be refitted, the engine refuses: {reason}",
        fix="load the engine again, as it may hold a mixture; build it again for this kit",
    )
