"""A device and its site, and what thieves of keys can publish there.

``Forger`` signs anything with the keys that devices trust, and lets all that stands above list it:
each signature is right, only the content is hostile. Backbone and bundles are those of
:mod:`tests.support.samples`, which no framework could run: nothing hostile may come that far.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.formats import encode_canonical

from tests.support import samples
from tests.support.archives import read_archive
from tests.support.fielded import Fielded, fielded, reopened
from tests.support.trusted import CARS, GRAPH, NOW, RESNET, WEIGHTS, Publisher, copied, passphrase
from toolchain.bundle import open_bundle
from toolchain.bundle.backbone import graph_digest
from toolchain.core.digest import sha256
from toolchain.core.errors import Da3Error
from toolchain.core.units import BackboneId, Unit
from toolchain.device.agent.agent import Agent
from toolchain.device.store.state import State
from toolchain.trust import keys as keyfiles
from toolchain.trust.release import custom
from toolchain.trust.unit import blob_place, manifest_place

Change = Callable[[dict[str, Any]], Any]
NOWHERE = Path("/nowhere")
ABOVE = {"targets": "snapshot", "snapshot": "timestamp", "timestamp": None, "root": None}
OWN = BackboneId(
    name="resnet20",
    weights_digest=samples.BACKBONE.weights_digest,
    graph_digest=graph_digest(sha256(GRAPH), sha256(WEIGHTS)),
)


@dataclass(frozen=True)
class Forger:
    """Whoever has the keys of ``publisher``."""

    publisher: Publisher

    @property
    def site(self) -> Path:
        return self.publisher.site

    def good(self) -> bytes:
        """The bundle that was published, from which attacks start."""
        return (self.publisher.dist / "cars.da3b").read_bytes()

    def sign(self, signed: Mapping[str, Any], role: str) -> bytes:
        """Return any JSON object as metadata, signed by every key of ``role``."""
        text = encode_canonical(dict(signed))
        assert isinstance(text, str)
        return json.dumps(
            {"signatures": self.signatures(text.encode(), role), "signed": signed}
        ).encode()

    def signatures(self, text: bytes, role: str) -> list[dict[str, str]]:
        folder = self.publisher.keys / _folder(role)
        return [
            {
                "keyid": record.keyid,
                "sig": keyfiles.signer(folder, record, passphrase).sign(text).signature,
            }
            for record in keyfiles.records(folder)
        ]

    def newest(self, role: str) -> tuple[int, dict[str, Any]]:
        """Return the newest version of a role on the site, and what it says."""
        if role == "timestamp":
            path = self.publisher.metadata("timestamp.json")
            signed = json.loads(path.read_bytes())["signed"]
            return int(signed["version"]), signed
        files = self.publisher.metadata("").glob(f"*.{role}.json")
        number, path = max((int(path.name.partition(".")[0]), path) for path in files)
        return number, json.loads(path.read_bytes())["signed"]

    def change(self, role: str, change: Change) -> None:
        """Publish the next version of a role after ``change`` has edited what it says."""
        version, signed = self.newest(role)
        signed["version"] = version + 1
        change(signed)
        self.put(role, self.sign(signed, role))

    def put(self, role: str, data: bytes) -> None:
        """Publish ``data`` as the next version of a role, and let what is above list it."""
        version = self.newest(role)[0] + 1
        name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
        self.publisher.metadata(name).write_bytes(data)
        above = ABOVE.get(role, "snapshot")
        if above is not None:
            about = {"version": version, "length": len(data)}
            self.change(above, lambda own: own["meta"].__setitem__(f"{role}.json", about))

    def target(self, unit: Unit, **fields: Any) -> None:
        """Publish a release of ``unit`` with fields of its manifest's entry changed."""
        path = unit.target(unit.manifest)
        self.change(unit.role, lambda signed: signed["targets"][path].update(fields))

    def release(
        self,
        unit: Unit,
        manifest: bytes,
        blobs: Mapping[str, bytes],
        *,
        backbone: BackboneId = OWN,
    ) -> None:
        """Publish a release of ``unit`` with any manifest; it is on the site, as are ``blobs``."""
        digest = sha256(manifest)
        self.file(manifest_place(unit, unit.manifest, digest), manifest)
        for name, data in blobs.items():
            self.file(blob_place(name), data)
        self.target(
            unit,
            length=len(manifest),
            hashes={"sha256": digest.removeprefix("sha256:")},
            custom=custom(backbone, len(manifest)),
        )

    def file(self, place: str, data: bytes) -> None:
        path = self.site / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def bundle(self, bad: bytes) -> None:
        """Publish the manifest and the blobs of a bundle that nobody would read."""
        archive = read_archive(bad)
        blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
        self.release(CARS, blobs.pop(archive.manifest_digest), blobs)


def _folder(role: str) -> str:
    kind, dash, name = role.partition("-")
    return f"{kind}s/{name}" if dash else role


# -- the device ----------------------------------------------------------------------------------


def prepare(home: Path, now: datetime) -> None:
    """Make a publisher of ``cars`` and a device on which its first release runs, below ``home``."""
    publisher = Publisher(home / "publisher", now)
    publisher.home.mkdir(parents=True)
    publisher.init("cars")
    backbone, bundle = publisher.backbone(), publisher.bundle()
    publisher.publish(publisher.sign(backbone, RESNET), publisher.sign(bundle, CARS))
    field = fielded(home / "device", publisher, domains=("cars",))
    opened = open_bundle(bundle)
    with field.store.writing() as writer:
        folder = writer.add_backbone(str(RESNET), 1, backbone, signed=True)
        writer.add_release(str(CARS), 1, opened, "a test", signed=True)
        writer.activate({str(RESNET): f"sha256:{folder.name}", str(CARS): opened.manifest_digest})
        writer.commit()
    # It has looked once: its cache and its floors are those of the good site.
    assert outcome(field) == ""


@dataclass(frozen=True)
class Attacked:
    """A device in its copy, and who attacks it; ``before``: what it was like."""

    field: Fielded
    forger: Forger
    before: State

    def unharmed(self) -> None:
        """Assert that what runs is what ran, by state, links and bytes."""
        store, now = self.field.store, self.field.store.state()
        assert now.generations == self.before.generations
        assert (now.current, now.previous, now.trial) == (1, 0, None)
        assert now.floors.releases == self.before.floors.releases
        assert os.readlink(store.path / "current") == "gen/1"  # noqa: PTH115 - its text
        assert sorted(one.name for one in (store.path / "gen").iterdir()) == ["1"]
        assert store.verify().ok


def attacked(made: Path, folder: Path, now: datetime = NOW) -> Attacked:
    """Return a copy of what :func:`prepare` has made."""
    publisher = copied(Publisher(made / "publisher", now), folder / "publisher")
    shutil.copytree(made / "device", folder / "device", symlinks=True)
    field = reopened(folder / "device", publisher)
    return Attacked(field, Forger(publisher), field.store.state())


def outcome(field: Fielded) -> str:
    """Let the agent go round once; return all that it had to say against the repository."""
    try:
        done = Agent(field.device, supplies=NOWHERE).once()
    except Da3Error as err:
        assert err.fix
        return f"{type(err).__name__}: {err.message}"
    assert not done.changed
    return "\n".join(one.reason for one in (*done.failed, *done.waiting))
