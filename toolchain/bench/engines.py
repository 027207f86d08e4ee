"""What an engine does on its device: skipping, swapping, memory, and that swapping leaves it alone.

Rules of this file: everything goes through the runner that applications use, but for the proof of
skipping, which forces gates and so talks to the backend; that it skips is written into the engine.
Wall clock, one picture, interleaved. It compares with nothing that is not on the device: PyTorch's
answers are in the bundles' golden data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from toolchain.bundle import open_bundle
from toolchain.bundle.release import read_release
from toolchain.core.digest import sha256
from toolchain.core.errors import UsageError
from toolchain.core.timing import WALL, interleaved
from toolchain.device.engine.cache import EngineArtefact, mark, open_engine
from toolchain.device.runtime import Runner
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.loading import Bound
from toolchain.device.runtime.selftest import difference, run_cases
from toolchain.device.runtime.trt import engine, skipping
from toolchain.device.runtime.trt.plan import Device

SCHEMA = "da3.bench.engine/1"
Notify = Callable[[str], None]


def measure(
    path: Path,
    bundles: Sequence[Path],
    *,
    rounds: int = 40,
    device: Device | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Measure the engine in the folder ``path`` with the domains in ``bundles``, one or more.

    ``device``: where it runs, by default this machine's GPU. Returns ``skipping`` (None without
    gates that can be forced), ``domains`` (seconds of each step of loading, and latency with the
    picture's own gates), ``switch`` (a request after another domain's against one after its own),
    ``parity`` with PyTorch over the golden data in both states of every gate (by bundle: cases,
    ``error`` over the logits' range where gates agree, cases with another class and gate),
    ``memory_bytes`` of the device, and ``unchanged``: whether the plans' bytes are those before.
    Raises UsageError without bundles, and as :class:`toolchain.device.runtime.Runner`.
    """
    if not bundles:
        raise UsageError("expected a bundle to run, got none", fix="name one with --bundle")
    artefact = open_engine(path)
    where = device or engine.open_device(artefact.manifest.built_for.module)
    before = _digests(artefact)
    found = _running(path, bundles, where, rounds, notify)
    notify("parity")
    parity = {bundle.stem: _parity(artefact, bundle, where) for bundle in bundles}
    proof = prove(artefact, where, rounds=rounds, notify=notify)
    return {
        "schema": SCHEMA,
        "engine": path.name,
        "built_for": artefact.manifest.built_for,
        **found,
        "parity": parity,
        "skipping": None if proof is None else {**asdict(proof), **_derived(proof)},
        "unchanged": _digests(open_engine(path)) == before,
    }


def prove(
    artefact: EngineArtefact,
    device: Device,
    *,
    rounds: int = skipping.ROUNDS,
    notify: Notify = lambda _: None,
) -> skipping.Skipping | None:
    """Time all gates closed against all open and write the verdict into the engine.

    None for an engine without gates and for a static one, whose gates nothing forces. Raises as
    :func:`toolchain.device.runtime.trt.engine.make_engine`.
    """
    kit = artefact.kit
    if artefact.manifest.built_for.flavour == "static" or not kit.gates:
        return None
    backend = engine.make_engine(artefact, device).backend
    proof = skipping.prove(
        backend,
        skipping.neutral(backend, kit.classes.best),
        kit.gates,
        size=artefact.backbone.input.size,
        share=skipping.gated_share(artefact.backbone, kit.gates),
        rounds=rounds,
        notify=lambda text: notify(f"skipping, {text}"),
    )
    mark(artefact.path, proof.verdict, asdict(proof))
    return proof


def alone_ms(artefact: EngineArtefact, device: Device, *, rounds: int = skipping.ROUNDS) -> float:
    """Return the median milliseconds of a request on an engine whose gates nothing forces.

    Written into the engine beside its verdict, to be held against what others measured.
    """
    backend = engine.make_engine(artefact, device).backend
    side = artefact.backbone.input.size
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    bound = backend.bind(skipping.neutral(backend, artefact.kit.classes.best))
    calls = {"alone": lambda: backend.run_bound(image, bound, None)}
    found = interleaved(calls, rounds=rounds, clock=WALL)["alone"].median_ms
    mark(artefact.path, artefact.manifest.gates, {"ms": found})
    return found


def _derived(proof: skipping.Skipping) -> dict[str, Any]:
    return {"saved": proof.saved, "verdict": proof.verdict}


def _digests(artefact: EngineArtefact) -> dict[str, str]:
    """Digests of the plans as they lie there now."""
    return {plan.file: sha256(artefact.read(plan)) for plan in artefact.manifest.plans}


def _parity(artefact: EngineArtefact, path: Path, device: Device) -> dict[str, Any]:
    release = read_release(open_bundle(path))
    loaded = engine.make_engine(artefact, device)
    golden = release.golden()
    cases = golden.take(golden.natural) if loaded.is_static else golden
    with TimeLimit(release.time_limit_s) as limit:
        bound = Bound(loaded, release, limit)
        got = run_cases(cases, bound, release.slots, release.preprocess, 1)
    found = difference(got, cases, gates=not loaded.is_static)
    return {
        "cases": len(cases),
        "error": found.agreed_absolute / found.span,
        "classes": found.top1,
        "gates": found.gates,
    }


def _running(
    path: Path, bundles: Sequence[Path], device: Device, rounds: int, notify: Notify
) -> dict[str, Any]:
    free, _ = device.cuda.memory()
    with Runner(path, device=device) as runner:
        opened, _ = device.cuda.memory()
        domains, names = {}, []
        for number, bundle in enumerate(bundles):
            name = f"{number} {bundle.stem}"
            notify(f"loading {bundle.stem}")
            loaded = runner.load(bundle, name=name)
            names.append(name)
            domains[name] = {
                "seconds": dict(loaded.seconds),
                "swap_s": _swap_s(runner, name, bundle),
                "slots_bytes": loaded.slots_bytes,
            }
        full, _ = device.cuda.memory()
        calls = {name: _call(runner, name) for name in names}
        notify("latency")
        timings = interleaved(calls, rounds=rounds, clock=WALL)
        for name, timing in timings.items():
            domains[name]["latency"] = asdict(timing)
        switch = _switch(calls, rounds) if len(calls) > 1 else None
    return {
        "domains": domains,
        "switch": switch,
        "memory_bytes": {"engine": free - opened, "domains": opened - full},
    }


def _swap_s(runner: Runner, name: str, bundle: Path, times: int = 5) -> float:
    """Median seconds of replacing a loaded domain by its own bundle, without the self-test."""
    seen = []
    for _ in range(times):
        started = time.perf_counter()
        runner.replace(bundle, name=name, selftest=False)
        seen.append(time.perf_counter() - started)
    return median(seen)


def _call(runner: Runner, name: str) -> Callable[[], object]:
    side = runner.domains[name].preprocess.size
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    return lambda: runner.infer(image, name)


def _switch(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Time two requests of one domain against one of each of two."""
    first, second = list(calls.values())[:2]

    def same() -> None:
        first()
        first()
        second()
        second()

    def switching() -> None:
        first()
        second()
        first()
        second()

    found = interleaved({"same": same, "switching": switching}, rounds=rounds, clock=WALL)
    return {name: asdict(timing) for name, timing in found.items()}
