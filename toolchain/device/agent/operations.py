"""What can be done on a device: look at the repository, install, try, keep or go back.

Rules of this file: a release is fetched, verified and tested aside before the store has it, and
nothing that runs notices. What is tried is kept when it was well for as long as the policy says;
otherwise the device goes back by itself. Whoever has a :class:`Writer` holds the store's one lock;
while the device looks whether a trial is well, nobody holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from toolchain import bundle
from toolchain.bundle import Bundle
from toolchain.bundle.backbone import ARTEFACT, BackboneArtefact
from toolchain.bundle.linkage import Linkage
from toolchain.bundle.release import read_release
from toolchain.core.errors import StoreError, UnsignedError, UsageError
from toolchain.core.files import is_folder, read_limited
from toolchain.core.timing import Notify
from toolchain.core.units import BACKBONES, BackboneId, Unit, is_backbone
from toolchain.device.agent.engines import build, fetch_kit, kit_for
from toolchain.device.agent.fetch import Fetcher, Repository
from toolchain.device.agent.health import Looked, look
from toolchain.device.agent.plan import Offers, Step, backbone_of
from toolchain.device.agent.policy import Policy
from toolchain.device.agent.transport import TransferLimits, Transport
from toolchain.device.boards.machine import Machine, read_machine
from toolchain.device.engine.cache import EngineStore
from toolchain.device.runtime.ort.trial import examine
from toolchain.device.store.layout import BUNDLE_NAME
from toolchain.device.store.state import INSTALLED, Held, State, Trial
from toolchain.device.store.store import Store, Writer
from toolchain.trust.checks import Floors as TrustFloors
from toolchain.trust.client import Trusted, refresh
from toolchain.trust.metadata import LIMIT_BYTES
from toolchain.trust.release import SignedRelease

_SWAP = Linkage("swap", "if").stem


def utc() -> datetime:
    """Return what the system's clock shows, in UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device: its store, its policy, and how to reach its repository.

    ``told`` takes a few words about each step. ``wait`` sleeps; an agent that shall stop raises out
    of it.
    """

    store: Store
    policy: Policy
    told: Notify = lambda _: None
    now: Callable[[], datetime] = utc
    wait: Callable[[float], None] = time.sleep
    machine: Callable[[], Machine] = read_machine

    @property
    def repository(self) -> Repository:
        """Where releases come from. Raises UsageError where the policy names none."""
        if self.policy.repository is None:
            raise UsageError(
                "expected a repository in the device's policy, got none",
                fix=f"name it in {self.store.path / 'policy.json'}, or install a file",
            )
        limits = TransferLimits(bandwidth=self.policy.bandwidth)
        return Repository(self.policy.repository, Transport(limits, wait=self.wait))

    def fetcher(self, writer: Writer) -> Fetcher:
        """Return what brings releases into the store's parts."""

        def progress(name: str, there: int, size: int) -> None:
            self.told(f"{name}: {there} of {size} bytes")

        return Fetcher(self.repository, writer, self.store.layout, progress)


# -- the repository ------------------------------------------------------------------------------


def look_at_repository(
    device: Device, writer: Writer, units: Collection[Unit] | None = None
) -> Trusted:
    """Return what the repository offers and can be trusted; the floors of metadata rise at once.

    Raises as :func:`toolchain.trust.client.refresh`, and UsageError where there is none.
    """
    layout, floors, repository = device.store.layout, writer.state.floors, device.repository
    root = read_limited(layout.trust_root, limit_bytes=LIMIT_BYTES, what="root metadata")
    device.told(f"looking at {repository.url}")
    trusted = refresh(
        layout.trust / "cache",
        root=root,
        url=repository.url,
        fetcher=repository.transport,
        floors=TrustFloors(metadata=floors.metadata, releases=floors.releases, clock=floors.clock),
        now=device.now(),
        units=units,
    )
    writer.raise_floors(trusted.floors.metadata, trusted.floors.clock)
    return trusted


# -- installing ----------------------------------------------------------------------------------


def install(device: Device, writer: Writer, release: SignedRelease, offers: Offers) -> None:
    """Fetch, verify, test and install one release; a domain's backbone first, if it is not here.

    Raises RepositoryError, VerificationError, SelftestError, StoreError, StorageError: nothing that
    runs has changed.
    """
    unit, digest = str(release.unit), release.manifest.digest
    known = writer.state.find(unit, digest)
    if known is not None and known.files and known.counter >= release.counter:
        return
    fetcher = device.fetcher(writer)
    device.told(f"{unit}: release {release.counter}, {release.bytes} bytes, less what is here")
    if release.unit.kind == BACKBONES:
        with fetcher.backbone(release) as artefact:
            writer.verified(unit, release.counter, digest)
            writer.add_backbone(unit, release.counter, artefact.path, signed=True)
        manifest: bundle.Manifest | bundle.BackboneManifest = artefact.manifest
    else:
        _require_backbone(device, writer, release, offers)
        opened = fetcher.bundle(release)
        manifest = opened.manifest
        writer.fetched(unit, release.counter, digest)
        tested_with = _tested(device, writer, opened)
        writer.verified(unit, release.counter, digest)
        writer.add_release(unit, release.counter, opened, tested_with, signed=True)
    fetcher.drop(release, manifest)
    device.told(f"{unit}: installed release {release.counter}")


def install_file(device: Device, writer: Writer, path: Path) -> str:
    """Install a bundle, or the folder of a backbone, that nobody has signed; return its unit.

    Raises UnsignedError unless the policy lets it; otherwise as :func:`install`.
    """
    if not device.policy.unsigned:
        raise UnsignedError(
            f"{path}: expected a signed release, got a file that nobody has signed",
            fix="install it from the repository by its name, or let the device take unsigned files "
            f"(unsigned: true in {device.store.path / 'policy.json'})",
        )
    device.told(f"WARNING: {path} is not signed; whoever made it decides what this device answers")
    if is_folder(path):
        artefact = bundle.open_backbone(path)
        unit = str(Unit(BACKBONES, artefact.manifest.name))
        writer.add_backbone(unit, 0, path, signed=False)
    else:
        opened = bundle.open_bundle(path)
        unit = str(Unit("domains", opened.manifest.domain))
        tested_with = _tested(device, writer, opened)
        writer.add_release(unit, 0, opened, tested_with, signed=False)
    device.told(f"{unit}: installed without a signature")
    return unit


def _require_backbone(
    device: Device, writer: Writer, release: SignedRelease, offers: Offers
) -> None:
    """Install the backbone that a domain needs, unless the store holds it."""
    needed = release.backbone
    assert needed is not None  # only a withdrawn release has none
    if held_backbone(writer.state, needed) is not None:
        return
    backbone = offers.get(str(Unit(BACKBONES, needed.name)))
    if backbone is None or backbone.backbone != needed:
        raise StoreError(
            f"{release.unit}: expected a release of its backbone {needed.name}, got none",
            fix="publish the backbone, too: da3 sign BACKBONE_FOLDER, da3 publish",
        )
    install(device, writer, backbone, offers)


def held_backbone(state: State, needed: BackboneId) -> Held | None:
    """Return the installed backbone that ``needed`` means, None where there is none."""
    for held in state.held:
        if is_backbone(held.unit) and held.fits is not None and held.fits.digests == needed.digests:
            return held
    return None


def _tested(device: Device, writer: Writer, opened: Bundle) -> str:
    """Have the bundle tested in a process of its own; return what it was tested with."""
    needed = opened.manifest.backbone
    held = held_backbone(writer.state, needed)
    if held is None:
        raise StoreError(
            f"{opened.manifest.domain}: expected its backbone {needed.name} in the store, got none",
            fix="install the backbone first",
        )
    device.told(f"{opened.manifest.domain}: self-test")
    with TemporaryDirectory(dir=device.store.layout.parts, prefix="trial-") as folder:
        path = Path(folder) / BUNDLE_NAME
        path.write_bytes(opened.to_bytes())
        return _examined(path, opened, device.store.layout.content(held.unit, held.digest))


def _examined(path: Path, opened: Bundle, backbone: Path) -> str:
    release = read_release(opened)
    # A bundle without any is refused by the name of the one that it ought to have.
    graph = _SWAP if _SWAP in release.graphs else next(iter(release.graphs), _SWAP)
    # The store has verified it; hashing it once more for each domain would take seconds.
    artefact = BackboneArtefact(backbone, ARTEFACT.read_manifest(backbone)[0])
    bundle.match(release.backbone, artefact, release.name)
    return examine(path, release, artefact, graph)


# -- what runs -----------------------------------------------------------------------------------


def take(device: Device, step: Step, offers: Offers) -> bool:
    """Install the releases of a step, try them together, and keep them if they are well."""
    with device.store.writing() as writer:
        for release in step.releases:
            install(device, writer, release, offers)
    build_engines(device, step.releases)
    with device.store.writing() as writer:
        running = {unit: held.digest for unit, held in writer.state.running.items()}
        changes = {u: digest for u, digest in step.changes.items() if running.get(u) != digest}
        if not changes:
            # The content runs already; its counter has risen with the installation.
            return True
        begin(device, writer, changes)
    return finish_trial(device)


def build_engines(device: Device, releases: Sequence[SignedRelease]) -> None:
    """Build the engine of each backbone that has a kit for this board, unless it is there.

    Raises RepositoryError, VerificationError, StorageError; BuildError where it could not be built.
    """
    for release in releases:
        # Looking at the machine takes a second, and most releases have no kit, or their engine.
        if release.unit.kind != BACKBONES or len(release.files) < 2:
            continue
        folder = device.store.layout.engines(release.manifest.digest)
        if EngineStore(folder).folders() or (kit := kit_for(release, device.machine())) is None:
            continue
        with device.store.writing() as writer:
            path = fetch_kit(device.fetcher(writer), release, kit, folder)
        build(path, folder, device.told)


def begin(device: Device, writer: Writer, changes: Mapping[str, str | None]) -> None:
    """Let ``changes`` run as a trial. Raises StoreError, StorageError."""
    writer.activate(changes)
    for unit, digest in changes.items():
        device.told(f"{unit}: {'removed' if digest is None else 'runs on trial'}")


def newest(state: State, unit: str) -> dict[str, str | None]:
    """Return what activating the newest installed release of ``unit`` changes.

    A domain that needs another backbone than the one that runs brings it along. Raises StoreError
    where nothing is installed.
    """
    releases = [one for one in state.held if one.unit == unit and one.files]
    if not releases:
        raise StoreError(
            f"expected an installed release of {unit}, got none",
            fix=f"install it first: da3 device install {Unit.parse(unit).name}",
        )
    # The store lists them as they came; what came last by hand or from the repository is meant.
    release = max(releases, key=lambda one: (one.state == INSTALLED, one.counter))
    changes: dict[str, str | None] = {unit: release.digest}
    if release.fits is not None and release.fits != backbone_of(state):
        backbone = held_backbone(state, release.fits)
        assert backbone is not None  # the domain was tested on it
        here = [name for name in state.running if is_backbone(name)]
        changes = {**dict.fromkeys(here), **changes, backbone.unit: backbone.digest}
    return changes


def finish_trial(device: Device) -> bool:
    """Look at what is tried for as long as the policy says; keep it, or go back and report.

    The store is free meanwhile: a hand may end the trial first. Returns whether it was kept.
    """
    trial = device.store.state().trial
    if trial is None:
        return True
    looked = _watched(device, trial)
    what = ", ".join(trial.units)
    with device.store.writing() as writer:
        if not _is_open(writer.state, trial):
            device.told(f"{what}: the trial was ended by somebody else")
            return False
        if looked.well:
            writer.commit()
            writer.report({"what": "committed", "units": what[:300]})
            device.told(f"{what}: well, so it stays")
        else:
            writer.roll_back(reason=looked.reason)
            writer.report({"what": "rolled back", "units": what[:300], "reason": looked.reason})
            device.told(f"{what}: went back, because {looked.reason}")
    return looked.well


def _watched(device: Device, trial: Trial) -> Looked:
    """Look again and again until the time is over or something is wrong."""
    health = device.policy.health
    deadline = time.monotonic() + health.seconds
    while True:
        looked = look(health, lambda: _selftests(device, trial))
        left = deadline - time.monotonic()
        # The self-tests answer the same each time; once is enough.
        repeats = health.command or health.url is not None
        if not looked.well or left <= 0 or not repeats:
            return looked
        device.wait(min(health.every_s, left))
        # A hand may have ended it; nobody waits for the rest of a day then.
        if not _is_open(device.store.state(), trial):
            return looked


def _is_open(state: State, trial: Trial) -> bool:
    """Whether ``trial`` is the one under way still."""
    return state.trial is not None and state.trial.generation == trial.generation


def _selftests(device: Device, trial: Trial) -> None:
    """Test every domain that the trial changes, as it lies on the disk now."""
    layout, running = device.store.layout, device.store.state().running
    backbones = [
        layout.content(unit, held.digest) for unit, held in running.items() if is_backbone(unit)
    ]
    # A new backbone concerns every domain.
    everything = any(map(is_backbone, trial.units))
    for unit, held in running.items():
        if not is_backbone(unit) and (everything or unit in trial.units):
            path = layout.content(unit, held.digest) / BUNDLE_NAME
            _examined(path, bundle.open_bundle(path), backbones[0])
