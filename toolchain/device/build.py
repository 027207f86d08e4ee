"""The pipeline of ``da3 build``: kit in, engine out, proved to skip; on the board that runs it.

Rules of this file: it calls the rooms in order (kit, key, cache, parse, repair, build, store,
prove) and has no logic of theirs. If there is an engine whose key is equal in every part, it is
used as it is. Otherwise the report says what differs, and a new engine is built. ``check`` does the
same without a device and keeps nothing. A callback takes the progress; nothing is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from toolchain.core.errors import BundleError, DeviceError, EngineMismatchError
from toolchain.core.files import make_folder
from toolchain.core.timing import Notify
from toolchain.core.words import Notes
from toolchain.device.boards.cuda import Cuda
from toolchain.device.boards.locate import here
from toolchain.device.boards.machine import Machine, read_machine
from toolchain.device.boards.target import Target, find
from toolchain.device.engine import tactics
from toolchain.device.engine.build import BuildOptions
from toolchain.device.engine.cache import (
    SCHEMA,
    EngineArtefact,
    EngineManifest,
    EnginePlan,
    EngineStore,
    Mismatch,
    open_engine,
)
from toolchain.device.engine.features import TensorRT, load
from toolchain.device.engine.job import Job, Piece
from toolchain.device.engine.key import EngineKey, key_of
from toolchain.device.engine.kit import Kit, KitFlavour, KitModel, open_kit
from toolchain.device.runtime.trt import engine
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.runtime.trt.proof import alone_ms, prove


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """How to build.

    ``module``: ``tensorrt`` or ``tensorrt_rtx``, None for the one that is installed. ``flavours``:
    of the kit, None for all. ``workspace_bytes``: memory for tactics, None to take it from what is
    free. ``level``: optimisation level 0 to 5, None for TensorRT's own. ``rebuild``: build even if
    the store has the engine.
    """

    module: str | None = None
    flavours: tuple[str, ...] | None = None
    workspace_bytes: int | None = None
    level: int | None = None
    rebuild: bool = False


DEFAULT = BuildRequest()
# Stands for the free memory if the system does not tell it.
_UNKNOWN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class FlavourReport:
    """What became of one flavour.

    ``engine``: its folder, None for a check, which stores nothing. ``reused``: the engine was in
    the store and is used as it is. ``instead_of``: the nearest engine of the store, and what
    differs, if none has the same key. ``gates``: the verdict of the proof. ``figures``: what the
    proof measured (``open_ms``, ``closed_ms`` and ``share``, or ``ms`` where no gate can be
    forced). ``resumed``: the piece during which an earlier build was killed.
    """

    flavour: str
    engine: Path | None
    reused: bool
    instead_of: Mismatch | None
    pieces: tuple[Piece, ...]
    gates: str
    figures: Notes
    resumed: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built from a kit, with which TensorRT and on what; ``device`` None for a check."""

    kit: Path
    target: str
    precision: str
    tensorrt: str
    device: str | None
    flavours: tuple[FlavourReport, ...]


def check(
    path: Path, request: BuildRequest = DEFAULT, *, notify: Notify = lambda _: None
) -> BuildReport:
    """Parse and build every model of the kit without a device, and keep nothing.

    Shows that the models parse, that every slot is an input, and that every branch has its
    boundaries; not that they are fast, nor what another TensorRT makes of them. Raises as the
    rooms do; BuildError where the module needs a device.
    """
    kit, trt = open_kit(path), load(request.module)
    _target(kit)
    free_bytes = read_machine().free_memory_bytes or _UNKNOWN_BYTES
    reports = []
    for flavour in _flavours_of(kit, request):
        job = Job(kit, trt, flavour, _options(request, kit, cpu_only=True), free_bytes)
        pieces = tuple(job.piece(model, notify) for model in flavour.models)
        job.require_slots()
        reports.append(
            FlavourReport(flavour.flavour, None, False, None, pieces, "unproven", {}, None, ())
        )
    return _report(kit, trt, None, reports)


def build(
    path: Path,
    store: Path,
    request: BuildRequest = DEFAULT,
    *,
    device: TrtDevice | None = None,
    machine: Machine | None = None,
    notify: Notify = lambda _: None,
) -> BuildReport:
    """Make the engines of the kit at ``path`` on this machine's GPU and keep them in ``store``.

    Raises EngineError without TensorRT, DeviceError without a GPU, EngineMismatchError for a kit of
    another target than this machine is, ModelRefusedError, ConditionalError and BuildError, each
    saying what to do.
    """
    kit, machine = open_kit(path), machine or read_machine()
    _require_target(kit, machine)
    try:
        device = device or engine.open_device(request.module)
    except DeviceError as err:
        err.fix += "; without a GPU, da3 build --check parses and builds the kit all the same"
        raise
    reports = [
        _made(kit, device, machine, flavour, store, request, notify)
        for flavour in _flavours_of(kit, request)
    ]
    return _report(kit, device.trt, device.cuda, reports)


def _report(
    kit: Kit, trt: TensorRT, cuda: Cuda | None, flavours: Sequence[FlavourReport]
) -> BuildReport:
    manifest = kit.manifest
    return BuildReport(
        kit.path,
        manifest.target,
        manifest.precision,
        f"{trt.name} {trt.build}",
        None if cuda is None else f"{cuda.gpu.name} (SM {cuda.gpu.sm})",
        tuple(flavours),
    )


def _flavours_of(kit: Kit, request: BuildRequest) -> tuple[KitFlavour, ...]:
    if request.flavours is None:
        return kit.manifest.flavours
    return tuple(kit.manifest.flavour(name) for name in request.flavours)


def _require_target(kit: Kit, machine: Machine) -> None:
    """Refuse a kit of another TensorRT: its dialect, repairs and precision follow the release."""
    target, own = _target(kit), here(machine)
    if own is not None and own.release.tensorrt != target.release.tensorrt:
        raise EngineMismatchError(
            f"{kit.path}: expected this machine to be {target.name} (TensorRT "
            f"{target.release.tensorrt}), got {own.name} (TensorRT {own.release.tensorrt})",
            fix=f"da3-export --domain NAME --target {own.name}",
        )


def _target(kit: Kit) -> Target:
    """Return the kit's target. Raises UnknownNameError, PrecisionError for one it has not."""
    target = find(kit.manifest.target)
    target.require(kit.manifest.precision)  # type: ignore[arg-type]  # one of them, by the schema
    return target


def _options(request: BuildRequest, kit: Kit, *, cpu_only: bool) -> BuildOptions:
    return BuildOptions(
        kit.manifest.precision,  # type: ignore[arg-type]  # one of them, by the schema
        kit.manifest.classes,
        request.workspace_bytes,
        request.level,
        cpu_only=cpu_only,
    )


def _made(
    kit: Kit,
    device: TrtDevice,
    machine: Machine,
    flavour: KitFlavour,
    folder: Path,
    request: BuildRequest,
    notify: Notify,
) -> FlavourReport:
    """Take the engine of a flavour from the store, or build it; then prove that it skips."""
    store, key = EngineStore(folder), _key(kit, device, machine, flavour, request)
    stored = store.find(key)
    if isinstance(stored, Path) and not request.rebuild:
        try:
            return _reused(open_engine(stored), device, flavour, notify)
        except BundleError as err:
            notify(f"{err.message}; building it again")
    other = stored if isinstance(stored, Mismatch) else None
    options = _options(request, kit, cpu_only=False)
    job = Job(kit, device.trt, flavour, options, device.cuda.memory()[0])
    pieces, resumed, notes = _timed(job, kit, flavour, folder, key, notify)
    job.require_slots()
    plans = tuple(
        EnginePlan(model.role, model.site, model.file, model.boundaries) for model in flavour.models
    )
    made_by = {"toolchain": version("da3-toolchain"), device.trt.name: device.trt.build}
    manifest = EngineManifest(SCHEMA, kit.backbone.name, key, plans, (), "unproven", {}, made_by)
    # An engine that lies there already is damaged, or was to be rebuilt.
    artefact = store.put(manifest, job.plans, kit, overwrite=True)
    measured = _proved(artefact, device, notify)
    return FlavourReport(
        flavour.flavour, artefact.path, False, other, pieces, *measured, resumed, notes
    )


def _reused(
    artefact: EngineArtefact, device: TrtDevice, flavour: KitFlavour, notify: Notify
) -> FlavourReport:
    manifest = artefact.manifest
    measured = manifest.gates, manifest.figures
    # It was built, and the process ended before the proof.
    if not manifest.figures:
        measured = _proved(artefact, device, notify)
    return FlavourReport(flavour.flavour, artefact.path, True, None, (), *measured, None, ())


def _key(
    kit: Kit, device: TrtDevice, machine: Machine, flavour: KitFlavour, request: BuildRequest
) -> EngineKey:
    level = "default" if request.level is None else request.level
    # The word and not the bytes: free memory differs from build to build, and no two keys would
    # agree.
    workspace = "free" if request.workspace_bytes is None else request.workspace_bytes
    return key_of(
        device.trt,
        device.cuda.gpu,
        kit,
        flavour=flavour.flavour,
        options=f"slots as inputs, level {level}, workspace {workspace}",
        l4t=machine.l4t,
        power=machine.power_mode,
    )


def _timed(
    job: Job, kit: Kit, flavour: KitFlavour, folder: Path, key: EngineKey, notify: Notify
) -> tuple[tuple[Piece, ...], str | None, tuple[str, ...]]:
    """Build the models of a flavour, keeping timings after each.

    After a build that was killed the kit's segments go first, if it has any: small, one by one.
    """
    make_folder(folder, fix="choose another with --engines")
    timings = tactics.timings(folder, key.device())
    models = {model.file: model for model in flavour.models}
    pieces: dict[str, Piece] = {}
    notes: dict[str, None] = {}

    def build_one(file: str, data: bytes) -> bytes:
        cache, note = job.open_cache(data)
        if note:
            notes[note] = None
        if file in models:
            pieces[file] = job.piece(models[file], notify, cache)
        else:
            job.warm(segments[file], notify, cache)
        return tactics.serialise(cache)

    whole = next((model.file for model in flavour.models if model.role == "whole"), None)
    segments = {m.file: m for m in _segments(kit)} if tactics.interrupted(timings) and whole else {}
    killed = tactics.run(timings, [*segments, *models], build_one)
    resumed = None if killed is None else killed.during or "an unknown piece"
    return tuple(pieces[file] for file in models), resumed, tuple(notes)


def _segments(kit: Kit) -> tuple[KitModel, ...]:
    chains = (item.models for item in kit.manifest.flavours if item.linkage.is_segmented)
    return next(chains, ())


def _proved(artefact: EngineArtefact, device: TrtDevice, notify: Notify) -> tuple[str, Notes]:
    """Time all gates open against all closed, and write the verdict into the engine."""
    notify("proving that closed gates skip")
    proof = prove(artefact, device)
    if proof is None:
        return artefact.manifest.gates, {"ms": alone_ms(artefact, device)}
    return proof.verdict, asdict(proof)
