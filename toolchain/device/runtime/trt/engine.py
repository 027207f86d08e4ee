"""A built engine in the place of a backbone artefact: its folder, and the one session on it.

Rules of this file: an engine is one session for good; domains come to it or are refused, and
nothing is built here. The engine's digest stands for it in self-tests, so that a domain tested on
one engine is tested again on every other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from toolchain.bundle.release import Release
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import ClosedError, SessionLimitError, first_few
from toolchain.core.files import is_file
from toolchain.device.boards.cuda import open_cuda
from toolchain.device.engine.cache import ENGINE_NAME, EngineArtefact, require
from toolchain.device.engine.features import load
from toolchain.device.engine.key import EngineKey
from toolchain.device.runtime.backbone_session import BackboneSession, Computed, Cost, ModelFacts
from toolchain.device.runtime.selftest import ALLOWED
from toolchain.device.runtime.trt.backend import EngineBackend
from toolchain.device.runtime.trt.plan import Plan, TrtDevice
from toolchain.device.runtime.trt.program import program


def is_engine(path: Path) -> bool:
    """Whether ``path`` is the folder of an engine."""
    return is_file(path / ENGINE_NAME)


def open_device(module: str | None = None) -> TrtDevice:
    """Return the machine's first GPU and its TensorRT.

    Raises EngineError where TensorRT is not installed, DeviceError where there is no GPU.
    """
    trt = load(module)
    return TrtDevice(open_cuda(), trt)


def make_session(
    engine: EngineArtefact, device: TrtDevice, *, contexts: int = 1
) -> BackboneSession:
    """Deserialise an engine's plans and make ``contexts`` lanes.

    Raises EngineMismatchError that says what differs for an engine of another device or TensorRT,
    BundleError and EngineError as :class:`toolchain.device.runtime.trt.plan.Plan` and
    :func:`toolchain.device.runtime.trt.program.program`, DeviceMemoryError.
    """
    built_for, kit, name = engine.manifest.built_for, engine.kit, engine.path.name
    require(_here(device, built_for), engine)
    started, free_bytes = time.perf_counter(), device.cuda.memory()[0]
    flavour = kit.flavour(built_for.flavour)
    is_static = flavour.linkage.folds_domain
    plans = program(
        engine.manifest.plans,
        lambda plan: Plan(device, engine.read(plan), what=f"{name}/{plan.file}"),
        () if is_static else kit.slots,
    )
    backend = EngineBackend(device, plans, gates=kit.gates, contexts=contexts, what=name)
    model = ModelFacts(
        computed=Computed(graph=kit.graph, owner=flavour.release or ""),
        options=kit.options,
        runs_on=f"engine {_digest(engine)}",
        allowed=ALLOWED[kit.precision],
    )
    # Other processes may give memory back meanwhile.
    taken_bytes = max(0, free_bytes - device.cuda.memory()[0])
    cost = Cost(resident_bytes=taken_bytes, seconds=time.perf_counter() - started)
    return BackboneSession(backend, model, number=0, cost=cost)


def _here(device: TrtDevice, built_for: EngineKey) -> EngineKey:
    """Return the key with what the device and its TensorRT say themselves in its place.

    Power mode and L4T change how fast an engine is and which driver runs it, not its answers.
    """
    gpu = device.cuda.gpu
    return replace(
        built_for,
        module=device.trt.name,
        tensorrt=device.trt.build,
        gpu=gpu.name,
        sm=gpu.sm,
        multiprocessors=gpu.multiprocessors,
    )


def _digest(engine: EngineArtefact) -> str:
    """Return what identifies the plans and the kit, whatever is measured on them later."""
    return sha256(canonical_json({entry.name: entry.digest for entry in engine.manifest.files}))


class OneSession:
    """What :class:`toolchain.device.runtime.ort.sessions.Sessions` is for a backbone's folder."""

    def __init__(self, session: BackboneSession, what: str) -> None:
        self._session: BackboneSession | None = session
        self._what = what
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._session is not None)

    @contextmanager
    def reserved(
        self,
        release: Release,
        leaving: BackboneSession | None,  # noqa: ARG002  # as Sessions has it
    ) -> Iterator[BackboneSession]:
        """Yield the session. Raises SessionLimitError for a release that does not fit it."""
        with self._lock:
            session = self._session
        if session is None:
            raise ClosedError("the runner is closed", fix="open another one")
        if lines := session.misfits(release):
            if release.patch is not None:
                raise SessionLimitError(
                    f"{release.name} cannot run on the engine {self._what}: {lines[0]}, and an "
                    "engine holds the backbone as it is",
                    fix="run it on the backbone's folder (provider cpu or cuda), or train the "
                    "domain with da3, da2 or head",
                )
            raise SessionLimitError(
                f"{release.name} does not fit the engine {self._what} ({first_few(lines, 1)})",
                fix="export a kit for it with da3-export --target, and build its engine with "
                "da3 build",
            )
        yield session

    def prove(self, release: Release, leaving: BackboneSession | None, source: Path) -> None:
        """Do nothing: the engine was built here, and no graph of a bundle is read."""

    def require_room(self, release: Release, users: Iterable[BackboneSession]) -> None:
        """Do nothing: there is one engine whatever is loaded."""

    def close(self) -> None:
        """Let go of the session; the engine ends with the last request."""
        with self._lock:
            self._session = None
