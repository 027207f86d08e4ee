"""What a person tells a device: make a store, install, activate, go back.

Rules of this file: each function does one thing that a person asks for, by the names that people
use. It takes the store's lock for as long as it works; an agent that works there at the same time
wins, and the error names it. What is tried by hand is looked after as the agent does it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolchain.core.errors import RolledBackError, UnknownNameError, UsageError
from toolchain.core.files import exists, read_limited
from toolchain.core.timing import Notify
from toolchain.core.units import Unit, is_backbone
from toolchain.device.agent import operations
from toolchain.device.agent.operations import Device
from toolchain.device.agent.policy import Policy, read_policy, write_policy
from toolchain.device.store.state import Settings, State
from toolchain.device.store.store import Store
from toolchain.trust.metadata import LIMIT_BYTES


def init(path: Path, root: Path | None, policy: Policy, settings: Settings) -> Store:
    """Make a store with its policy; ``root``: the repository's root metadata.

    Raises ExistsError, StorageError, and UsageError for a repository without its root.
    """
    if root is None and policy.repository is not None:
        raise UsageError(
            "expected the root metadata of the repository, got none",
            fix="name it: --root root.json, as `da3 keys init` has made it",
        )
    data = None if root is None else read_limited(root, limit_bytes=LIMIT_BYTES, what="root")
    store = Store.create(path, root=data, settings=settings)
    write_policy(store.path, policy)
    return store


def open_device(path: Path, told: Notify) -> Device:
    """Return the device of the store in ``path``. Raises PolicyError, StorageError."""
    store = Store.open(path)
    return Device(store=store, policy=read_policy(store.path), told=told)


def install(device: Device, what: str) -> str:
    """Install a release by its name, or an unsigned file by its path; return its unit.

    Nothing that runs changes. Raises as :func:`operations.install` and
    :func:`operations.install_file`; UnknownNameError for a name that the repository does not have.
    """
    with device.store.writing() as writer:
        if "/" in what or exists(what):
            return operations.install_file(device, writer, Path(what))
        unit = Unit(kind="domains", name=what)
        trusted = operations.look_at_repository(device, writer, [unit])
        release = trusted.release(unit)
        if release is None:
            names = [Unit.parse(one).name for one in trusted.releases if not is_backbone(one)]
            raise UnknownNameError("domain", what, names, fix="or name a file, such as ./cars.da3b")
        operations.install(device, writer, release, trusted.releases)
    # Those of other domains' backbones are built when they are needed.
    operations.build_engines(
        device, [one for one in trusted.releases.values() if one.backbone == release.backbone]
    )
    return str(unit)


def activate(device: Device, name: str) -> None:
    """Let the newest installed release of a domain run, as a trial; keep it if it is well.

    Raises RolledBackError where it was not well, StoreError, StorageError.
    """
    unit = str(Unit("domains", name))
    _try(device, unit, lambda: operations.newest(device.store.state(), unit))


def remove(device: Device, name: str) -> None:
    """Let a domain run no longer. Raises UnknownNameError, StoreError, StorageError."""
    unit = str(Unit("domains", name))
    running = device.store.state().running
    if unit not in running:
        raise UnknownNameError("domain", name, [Unit.parse(one).name for one in running])
    _try(device, unit, lambda: {unit: None})


def roll_back(device: Device, name: str | None = None) -> tuple[str, ...]:
    """Let the generation before run again; return the units that changed.

    ``name``: the domain that is meant. Raises UsageError where others would go back with it,
    StoreError where there is no generation before.
    """
    with device.store.writing() as writer:
        changed = _changed(writer.state)
        if name is not None and changed and changed != (str(Unit("domains", name)),):
            raise UsageError(
                f"expected the last change to be that of {name}, got {', '.join(changed)}",
                fix="leave the name out to take all of that back, or publish a higher release "
                "with the content that you want",
            )
        writer.roll_back(reason="by hand")
    for unit in changed:
        device.told(f"{unit}: runs as before")
    return changed


def _changed(state: State) -> tuple[str, ...]:
    """Return the units in which the current generation and the one before differ."""
    before = state.generation(state.trial.before if state.trial else state.previous)
    current = state.generation(state.current)
    old, new = (dict(one.units) if one else {} for one in (before, current))
    return tuple(sorted(unit for unit in old | new if old.get(unit) != new.get(unit)))


def _try(device: Device, unit: str, changes: Callable[[], dict[str, str | None]]) -> None:
    with device.store.writing() as writer:
        operations.begin(device, writer, changes())
    if not operations.finish_trial(device):
        failed = [one for one in device.store.state().failed if one.unit == unit]
        reason = failed[-1].reason if failed else "see da3 device history"
        raise RolledBackError(
            f"{Unit.parse(unit).name}: expected it to be well, and went back: {reason}",
            fix="what ran before runs on; look into the cause, and install another release",
        )
