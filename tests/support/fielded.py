"""A publisher whose bundles really run, and a device on which they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from tests.support.stored import BACKBONE, BUNDLES
from tests.support.trusted import NOW, Publisher, passphrase
from toolchain.bundle import Payload, open_bundle, pack
from toolchain.core.units import Unit
from toolchain.device.agent import by_hand
from toolchain.device.agent.operations import Device
from toolchain.device.agent.policy import Health, Policy, read_policy, write_policy
from toolchain.device.store.state import Settings
from toolchain.device.store.store import Store
from toolchain.trust import ceremonies

SAMPLE = Unit(kind="domains", name="sample")
PATCHED = Unit(kind="domains", name="patched")
TOY = Unit(kind="backbones", name="toy")


def remade(source: Path, path: Path, **changes: object) -> Path:
    """Write the bundle ``source`` anew as ``path``, with other fields of its manifest."""
    opened = open_bundle(source)
    payloads = [
        Payload(entry.role, entry.name, opened.blob(entry.name)) for entry in opened.manifest.files
    ]
    pack(path, replace(opened.manifest, **changes), payloads, overwrite=True)  # type: ignore[arg-type]
    return path


class ToyPublisher(Publisher):
    """Publishes the toy backbone, and the domains ``sample`` and ``patched`` on it."""

    def begin(self) -> None:
        """Hold the first ceremony, and publish a release of each."""
        self.home.mkdir(exist_ok=True)
        self.dist.mkdir()
        ceremonies.init(
            self.keys,
            domains=["sample", "patched"],
            backbones=["toy"],
            passphrase=passphrase,
            now=self.now,
        )
        folder = self.dist / BACKBONE.name
        folder.mkdir()
        for file in BACKBONE.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        self.publish(
            self.sign(folder, TOY),
            self.sign(self.made("sample", "1.0"), SAMPLE),
            self.sign(self.made("patched", "1.0"), PATCHED),
        )

    def made(self, domain: str, version: str) -> Path:
        """Write a bundle of ``domain`` with another version, so with another digest."""
        return remade(BUNDLES / f"{domain}.da3b", self.dist / f"{domain}.da3b", version=version)

    def update(self, domain: str, version: str) -> str:
        """Publish another release of a domain; return its digest."""
        path = self.made(domain, version)
        self.publish(self.sign(path, Unit(kind="domains", name=domain)))
        return open_bundle(path).manifest_digest


@dataclass
class Fielded:
    """A device in the field: its store, what it was told, and a clock that a test sets."""

    device: Device
    told: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    now: datetime = NOW

    @property
    def store(self) -> Store:
        return self.device.store

    def running(self) -> dict[str, str]:
        """The digest of each unit's release that runs."""
        return {unit: held.digest for unit, held in self.store.state().running.items()}

    def policy(self, **changes: object) -> None:
        """Edit the policy, on the disk, too."""
        self.device = replace(self.device, policy=replace(self.device.policy, **changes))  # type: ignore[arg-type]
        write_policy(self.store.path, self.device.policy)

    def later(self, **delta: float) -> None:
        self.now += timedelta(**delta)


def reopened(path: Path, publisher: Publisher) -> Fielded:
    """Return the device whose store lies in ``path``, a copy, which looks at the publisher's site.

    It is where it was: its clock, and nothing that it was told.
    """
    store = Store.open(path)
    made = Fielded(Device(store=store, policy=read_policy(path)), now=publisher.now)
    _wired(made)
    made.policy(repository=f"file://{publisher.site}")
    return made


def _wired(made: Fielded) -> None:
    clock: Callable[[], datetime] = lambda: made.now  # noqa: E731
    made.device = replace(made.device, told=made.told.append, wait=made.waited.append, now=clock)


def fielded(path: Path, publisher: Publisher, url: str = "", **policy: object) -> Fielded:
    """Make a device that knows the publisher's root and looks at its site."""
    root = path.with_suffix(".root.json")
    root.write_bytes(publisher.root)
    wanted = Policy(
        repository=url or f"file://{publisher.site}",
        health=Health(seconds=0),
        **policy,  # type: ignore[arg-type]
    )
    store = by_hand.init(path, root, wanted, Settings())
    made = Fielded(Device(store=store, policy=wanted), now=publisher.now)
    _wired(made)
    return made
