"""The readers that take bytes from anybody, each as one function of bytes.

Rules of this file: a reader returns, or raises an error of ours; whatever else it raises is a fault
that a fuzzer has found. Digests are put right again, because no fuzzer would come past them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.support.samples import BACKBONE, MANIFEST, PAYLOADS, resealed
from tests.support.trusted import CARS, RESNET, Publisher
from toolchain.bundle import BackboneManifest, Manifest, pack, read_bundle
from toolchain.bundle.slots import check_slots, slot_arrays, slot_table
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import Da3Error
from toolchain.trust import checks
from toolchain.trust import metadata as tuf
from toolchain.trust.assignment import fleet_of
from toolchain.trust.release import read_release


class Reader(NamedTuple):
    """What is fuzzed: ``seeds`` makes good inputs, ``read`` reads one of any kind."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], object]


@cache
def good() -> bytes:
    """A bundle of a few kilobytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cars.da3b"
        pack(path, MANIFEST, PAYLOADS)
        return path.read_bytes()


def manifest(data: bytes) -> None:
    """Read a bundle's manifest, as it is and in the one form, then with the files around it."""
    with suppress(Da3Error):
        Manifest.from_json(data)
    if (text := in_form(data)) is not None:
        with suppress(Da3Error):
            read_bundle(resealed(good(), text))


def backbone(data: bytes) -> None:
    """Read a backbone's manifest, as it is and in the one form."""
    for text in (data, in_form(data)):
        with suppress(Da3Error):
            BackboneManifest.from_json(text or b"")


def archive(data: bytes) -> None:
    """Read a bundle."""
    with suppress(Da3Error):
        read_bundle(data)


def slots(data: bytes) -> None:
    """Read a bundle's slots, and compare them with their own table."""
    with suppress(Da3Error):
        check_slots(slot_table(data), data)
        slot_arrays(data)


def metadata(data: bytes) -> None:
    """Read metadata as a device does whose checks of signatures it has passed."""
    with suppress(Da3Error):
        signed = tuf.read_any(data, "metadata").signed
        checks.raised({}, {signed.type: signed.version})
        _OF_KIND.get(signed.type, id)(signed)


def _targets(signed: Any) -> None:
    for unit in (CARS, RESNET):
        with suppress(Da3Error):
            read_release(unit, signed)
    fleet_of(signed)
    for unit in checks.delegated_units(signed):
        checks.floor_name(unit.role, signed)


def _root(signed: Any) -> None:
    checks.require_root(signed)
    for role in tuf.TOP:
        checks.floor_name(role, signed)


_OF_KIND: dict[str, Callable[[Any], object]] = {
    "targets": _targets,
    "root": _root,
    "timestamp": checks.issued,
}


def in_form(data: bytes) -> bytes | None:
    """Return the JSON of ``data`` in its one form, None for what is none."""
    try:
        return canonical_json(json.loads(data))
    except (ValueError, RecursionError, Da3Error):
        return None


def _metadata_seeds() -> list[bytes]:
    with TemporaryDirectory() as folder:
        publisher = Publisher(Path(folder) / "home")
        publisher.home.mkdir()
        publisher.init("cars")
        release = publisher.sign(publisher.backbone(), RESNET)
        publisher.publish(release, publisher.sign(publisher.bundle(), CARS))
        return [path.read_bytes() for path in (publisher.site / "metadata").iterdir()]


READERS = {
    "manifest": Reader(lambda: [read_bundle(good()).manifest.to_json()], manifest),
    "backbone": Reader(lambda: [BACKBONE.to_json()], backbone),
    "archive": Reader(lambda: [good()], archive),
    "slots": Reader(lambda: [one.data for one in PAYLOADS if one.role == "slots"], slots),
    "metadata": Reader(_metadata_seeds, metadata),
}
