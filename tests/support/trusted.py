"""A small publisher with real keys, bundles and a site, and a device that refreshes from it.

``Publisher`` holds what a user would have on disk; its functions are those of the command line.
``Folder`` serves a site without a server; what a hostile mirror does is done to the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Snapshot, Timestamp
from tuf.ngclient import FetcherInterface

from tests.support import samples
from toolchain.bundle import pack, write_backbone
from toolchain.bundle.backbone import graph_digest
from toolchain.core.digest import sha256
from toolchain.core.units import Unit
from toolchain.trust import ceremonies, signing
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.checks import NO_FLOORS, Floors
from toolchain.trust.client import Trusted, refresh
from toolchain.trust.site import Published, publish

PASSPHRASE, PIN = "five words taken at random", "123456"
NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
CARS = Unit(kind="domains", name="cars")
FLOWERS = Unit(kind="domains", name="flowers")
RESNET = Unit(kind="backbones", name="resnet20")
GRAPH, WEIGHTS = b"the graph", b"the weights"


def passphrase(kind: str) -> str:
    return {"passphrase": PASSPHRASE, "PIN": PIN}[kind]


class Folder(FetcherInterface):
    """Serves ``file://`` addresses; ``asked`` lists them, ``spoil`` may change what is sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.spoil: Callable[[str, Iterator[bytes]], Iterator[bytes]] = lambda _, pieces: pieces

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(unquote(urlparse(url).path))
        self.asked.append(path.name)
        return self.spoil(path.name, self._pieces(path))

    def _pieces(self, path: Path) -> Iterator[bytes]:
        if not path.is_file():
            raise DownloadHTTPError(f"no {path.name}", 404)
        with path.open("rb") as file:
            while piece := file.read(1 << 16):
                yield piece


@dataclass
class Publisher:
    """Keys, exported files and a site below ``home``."""

    home: Path
    now: datetime = NOW

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def dist(self) -> Path:
        return self.home / "dist"

    @property
    def site(self) -> Path:
        return self.home / "site"

    @property
    def root(self) -> bytes:
        """The root that devices are given first."""
        return (self.keys / "metadata" / "1.root.json").read_bytes()

    def init(self, *domains: str) -> None:
        ceremonies.init(
            self.keys, domains=domains, backbones=["resnet20"], passphrase=passphrase, now=self.now
        )
        self.dist.mkdir()

    def bundle(self, domain: str = "cars", version: str = "1.0") -> Path:
        """Write the bundle of a domain and return its path."""
        path = self.dist / f"{domain}.da3b"
        reference = replace(
            samples.MANIFEST.backbone,
            graph_digest=graph_digest(sha256(GRAPH), sha256(WEIGHTS)),
        )
        manifest = replace(samples.MANIFEST, domain=domain, version=version, backbone=reference)
        pack(path, manifest, samples.PAYLOADS, overwrite=True)
        return path

    def backbone(self) -> Path:
        """Write the backbone and return its folder."""
        return write_backbone(
            self.dist, samples.BACKBONE, graph=GRAPH, weights=WEIGHTS, overwrite=True
        ).path

    def sign(self, path: Path, unit: Unit, **options: object) -> Path:
        key = self.keys / str(unit)
        return signing.sign(path, key, passphrase=passphrase, now=self.now, **options).path  # type: ignore[arg-type]

    def publish(self, *releases: Path) -> Published:
        return publish(self.site, self.keys, releases, passphrase=passphrase, now=self.now)

    def release(self, domain: str = "cars", version: str = "1.0") -> Path:
        """Export, sign and publish a domain."""
        unit = Unit(kind="domains", name=domain)
        path = self.sign(self.bundle(domain, version), unit)
        self.publish(path)
        return path

    def ceremony(self, what: Callable[..., object], *words: object) -> None:
        what(self.keys, *words, passphrase=passphrase, now=self.now)

    def later(self, days: float) -> None:
        self.now += timedelta(days=days)

    def metadata(self, name: str) -> Path:
        return self.site / "metadata" / name

    def republish(self, **roles: bytes) -> None:
        """Sign a snapshot over changed roles, and a timestamp: a thief of the online keys."""
        stamp = tuf.read(Timestamp, self.metadata("timestamp.json").read_bytes(), "").signed
        name = f"{stamp.snapshot_meta.version}.snapshot.json"
        before = tuf.read(Snapshot, self.metadata(name).read_bytes(), "").signed
        new = {
            role.replace("_", "-"): (Metadata.from_bytes(data).signed.version, data)
            for role, data in roles.items()
        }
        for role, (version, data) in new.items():
            self.metadata(f"{version}.{role}.json").write_bytes(data)
        self.restamp(tuf.make_snapshot(before, self.now + timedelta(days=30), new))

    def restamp(self, snapshot: Snapshot) -> None:
        """Sign ``snapshot`` and a timestamp over it."""
        stamp = tuf.read(Timestamp, self.metadata("timestamp.json").read_bytes(), "").signed
        path = self.forge(f"{snapshot.version}.snapshot.json", snapshot, "snapshot")
        about = (snapshot.version, path.read_bytes())
        new = tuf.make_timestamp(stamp, self.now + timedelta(days=7), about, self.now)
        self.forge("timestamp.json", new, "timestamp")

    def forged(self, signed: tuf.SignedT, *roles: str) -> bytes:
        """Return ``signed`` as a file, signed by the keys of ``roles``."""
        path = self.forge("forged.json", signed, *roles)
        data = path.read_bytes()
        path.unlink()
        return data

    def forge(self, name: str, signed: tuf.SignedT, *roles: str) -> Path:
        """Write ``signed`` to the site, signed with the keys of ``roles``: what a thief can do."""
        signers = [
            keyfiles.signer(self.keys / role, record, passphrase)
            for role in roles
            for record in keyfiles.records(self.keys / role)
        ]
        path = self.metadata(name)
        document = Metadata(signed)
        for signer in signers:
            document.sign(signer, append=True)
        path.write_bytes(document.to_bytes())
        return path


@dataclass
class Device:
    """A device: what it was given, what it keeps, and where it looks."""

    folder: Path
    root: bytes
    site: Path
    floors: Floors = NO_FLOORS
    fetcher: Folder = field(default_factory=Folder)

    def look(self, now: datetime, units: Collection[Unit] | None = None) -> Trusted:
        """Refresh, and keep the floors as a store does."""
        trusted = refresh(
            self.folder,
            root=self.root,
            url=f"file://{self.site}",
            fetcher=self.fetcher,
            floors=self.floors,
            now=now,
            units=units,
        )
        self.floors = trusted.floors
        return trusted

    def commit(self, trusted: Trusted) -> None:
        """Raise the floors of releases, as a store does when they have proved themselves."""
        counters = {name: one.counter for name, one in trusted.releases.items()}
        self.floors = replace(self.floors, releases={**self.floors.releases, **counters})


def copied(publisher: Publisher, home: Path) -> Publisher:
    """Return a copy of all that a publisher has, which a test may change."""
    shutil.copytree(publisher.home, home, symlinks=True)
    return Publisher(home, publisher.now)
