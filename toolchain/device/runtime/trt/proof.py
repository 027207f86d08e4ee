"""Prove on a built engine that closed gates skip, and write the verdict into the engine.

Rules of this file: ``da3 build`` calls it for every engine that it makes. The verdict is a record
in the engine's folder; no plan changes. :mod:`~toolchain.device.runtime.trt.skipping` says how
skipping is measured.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from toolchain.bundle.linkage import kit_linkage
from toolchain.core.timing import WALL, Notify, interleaved
from toolchain.device.engine.cache import EngineArtefact, mark
from toolchain.device.runtime.trt.engine import make_session
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.runtime.trt.skipping import (
    ROUNDS,
    Skipping,
    gated_share,
    measure_skipping,
    neutral,
)


def prove(
    artefact: EngineArtefact,
    device: TrtDevice,
    *,
    rounds: int = ROUNDS,
    notify: Notify = lambda _: None,
) -> Skipping | None:
    """Time all gates closed against all open and write the verdict into the engine.

    None for an engine without gates and for a static one, whose gates nothing forces. Raises as
    :func:`toolchain.device.runtime.trt.engine.make_session`.
    """
    kit = artefact.kit
    if kit_linkage(artefact.manifest.built_for.flavour).folds_domain or not kit.gates:
        return None
    backend = make_session(artefact, device).backend
    proof = measure_skipping(
        backend,
        neutral(backend, kit.classes.best),
        kit.gates,
        size=artefact.backbone.input.size,
        share=gated_share(artefact.backbone, kit.gates),
        rounds=rounds,
        notify=lambda text: notify(f"skipping, {text}"),
    )
    mark(artefact.path, proof.verdict, asdict(proof))
    return proof


def alone_ms(artefact: EngineArtefact, device: TrtDevice, *, rounds: int = ROUNDS) -> float:
    """Return the median milliseconds of a request on an engine whose gates nothing forces.

    It is written into the engine beside its verdict, for comparison with what others measured.
    """
    backend = make_session(artefact, device).backend
    side = artefact.backbone.input.size
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    bound = backend.bind(neutral(backend, artefact.kit.classes.best))
    calls = {"alone": lambda: backend.run_bound(image, bound, None)}
    median_ms = interleaved(calls, rounds=rounds, clock=WALL)["alone"].median_ms
    mark(artefact.path, artefact.manifest.gates, {"ms": median_ms})
    return median_ms
