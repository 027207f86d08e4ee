"""What an engine does on its device: skipping, swapping, memory, and that swapping leaves it alone.

Rules of this file: everything goes through the runner that applications use. Only the proof of
skipping does not: :mod:`~toolchain.device.runtime.trt.proof` runs it and writes it into the engine.
Times are wall clock, for one picture, interleaved. This file compares with nothing that is not on
the device: PyTorch's answers are in the bundles' golden data.
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
from toolchain.core.timing import WALL, Notify, interleaved
from toolchain.device import Runner
from toolchain.device.engine.cache import EngineArtefact, open_engine
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.loading import SessionUnderTest
from toolchain.device.runtime.selftest import difference, run_cases
from toolchain.device.runtime.trt import engine
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.runtime.trt.proof import prove
from toolchain.device.runtime.trt.skipping import Skipping

SCHEMA = "da3.bench.engine/1"


def measure(
    path: Path,
    bundles: Sequence[Path],
    *,
    rounds: int = 40,
    device: TrtDevice | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Measure the engine in the folder ``path`` with the domains in ``bundles``, one or more.

    ``device``: where it runs, by default this machine's GPU. Returns ``skipping`` (None without
    gates that can be forced), ``domains`` (seconds of each step of loading, and latency with the
    picture's own gates), ``switch`` (a request after another domain's against one after its own),
    ``parity`` with PyTorch over the golden data in both states of every gate (by bundle: cases,
    ``error`` over the logits' range where gates agree, cases with another class and gate),
    ``memory_bytes`` of the device, and ``unchanged``: whether the plans' bytes are those before.
    Raises UsageError without bundles, and as :class:`toolchain.device.Runner`.
    """
    if not bundles:
        raise UsageError("expected a bundle to run, got none", fix="name one with --bundle")
    artefact = open_engine(path)
    where = device or engine.open_device(artefact.manifest.built_for.module)
    before = _digests(artefact)
    running = _running(path, bundles, where, rounds, notify)
    notify("parity")
    parity = {bundle.stem: _parity(artefact, bundle, where) for bundle in bundles}
    proof = prove(artefact, where, rounds=rounds, notify=notify)
    return {
        "schema": SCHEMA,
        "engine": path.name,
        "built_for": artefact.manifest.built_for,
        **running,
        "parity": parity,
        "skipping": None if proof is None else {**asdict(proof), **_derived(proof)},
        "unchanged": _digests(open_engine(path)) == before,
    }


def _derived(proof: Skipping) -> dict[str, Any]:
    return {"saved": proof.saved, "verdict": proof.verdict}


def _digests(artefact: EngineArtefact) -> dict[str, str]:
    """Digests of the plans as they lie there now."""
    return {plan.file: sha256(artefact.read(plan)) for plan in artefact.manifest.plans}


def _parity(artefact: EngineArtefact, path: Path, device: TrtDevice) -> dict[str, Any]:
    release = read_release(open_bundle(path))
    loaded = engine.make_session(artefact, device)
    golden = release.golden()
    # A forced case moves a gate's bias. A static engine has its biases inside.
    cases = golden.take(golden.natural) if loaded.is_static else golden
    with TimeLimit(release.time_limit_s) as limit:
        bound = SessionUnderTest(loaded, release, limit)
        got = run_cases(cases, bound, release.slots, release.preprocess, 1)
    apart = difference(got, cases, gates=not loaded.is_static)
    return {
        "cases": len(cases),
        "error": apart.agreed_absolute / apart.span,
        "classes": apart.top1,
        "gates": apart.gates,
    }


def _running(
    path: Path, bundles: Sequence[Path], device: TrtDevice, rounds: int, notify: Notify
) -> dict[str, Any]:
    free, _ = device.cuda.memory()
    with Runner(path, device=device) as runner:
        opened, _ = device.cuda.memory()
        domains, names = {}, []
        for number, bundle in enumerate(bundles):
            # Two bundles in two folders may have the same file name.
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
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        runner.replace(bundle, name=name, selftest=False)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _call(runner: Runner, name: str) -> Callable[[], object]:
    side = runner.domains[name].preprocess.size
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    return lambda: runner.infer(image, name)


def _switch(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Time two requests of one domain against one of each of two."""
    first, second = list(calls.values())[:2]

    # The same four requests in both. Only their order differs.
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

    timings = interleaved({"same": same, "switching": switching}, rounds=rounds, clock=WALL)
    return {name: asdict(timing) for name, timing in timings.items()}
