"""Metadata of odd types and shapes, signed by the right keys: each is refused, none is a crash.

A stolen key signs whatever its thief likes. So what stands in signed metadata is hostile too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.exceptions import DownloadHTTPError

from tests.support.trusted import CARS, NOW, Device, Publisher, passphrase
from toolchain.core.errors import Da3Error, MalformedError, RepositoryError, StorageError
from toolchain.trust import keys as keyfiles
from toolchain.trust.checks import NO_FLOORS

Change = Callable[[dict[str, Any]], None]
VALUES: tuple[Any, ...] = (None, True, 0, -1, 2**60, "x", [], {}, [[]], {"a": []}, "9" * 300)
PATHS = {
    "timestamp": ("version", "expires", "meta", "issued", "spec_version", "_type"),
    "domain-cars": ("version", "expires", "targets", "unit", "spec_version", "delegations"),
    "targets": ("version", "expires", "targets", "delegations", "fleet"),
    "snapshot": ("version", "expires", "meta"),
}


def sign_document(publisher: Publisher, signed: dict[str, Any], role: str) -> bytes:
    """Return any JSON object as metadata, signed by the keys of ``role``."""
    text = encode_canonical(signed)
    assert isinstance(text, str)
    signatures = []
    for record in keyfiles.records(publisher.keys / role):
        one = keyfiles.signer(publisher.keys / role, record, passphrase)
        signatures.append({"keyid": record.keyid, "sig": one.sign(text.encode()).signature})
    return json.dumps({"signatures": signatures, "signed": signed}).encode()


def serve(publisher: Publisher, name: str, change: Change) -> None:
    """Change the newest metadata of a role and let everything above it list what came out."""
    file = "timestamp.json" if name == "timestamp" else f"1.{name}.json"
    path = publisher.metadata(file)
    signed = json.loads(path.read_bytes())["signed"]
    change(signed)
    folder = name.replace("-", "s/") if name.startswith("domain-") else name
    data = sign_document(publisher, signed, folder)
    path.write_bytes(data)
    above = {"domain-cars": "snapshot", "targets": "snapshot", "snapshot": "timestamp"}.get(name)
    if above is not None:
        about = {"version": 1, "length": len(data)}
        serve(publisher, above, lambda own: own["meta"].__setitem__(f"{name}.json", about))


CASES = [(role, field) for role, fields in PATHS.items() for field in fields]


@pytest.mark.parametrize(("role", "field"), CASES, ids=[f"{r}.{f}" for r, f in CASES])
def test_a_field_of_an_odd_type(
    publisher: Publisher, device: Device, role: str, field: str
) -> None:
    kept = {path: path.read_bytes() for path in (publisher.site / "metadata").iterdir()}
    for value in VALUES:
        serve(publisher, role, lambda signed, value=value: signed.update({field: value}))  # type: ignore[misc]
        device.floors = NO_FLOORS
        try:
            trusted = device.look(NOW, units=[CARS])
        except Da3Error as err:
            assert not isinstance(err, StorageError | RepositoryError), err
        else:
            release = trusted.releases.get(str(CARS))
            assert release is None or type(release.counter) is int
            assert all(type(one) is int for one in trusted.floors.metadata.values())
        for path, data in kept.items():
            path.write_bytes(data)
        for path in device.folder.glob("*.json"):
            path.unlink()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_were_changed_anywhere(
    publisher: Publisher, device: Device, data: st.DataObject
) -> None:
    """Law: what a mirror changes is refused, or it is the very release that was signed."""
    path = data.draw(st.sampled_from(sorted((publisher.site / "metadata").glob("*.json"))))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    piece = data.draw(st.binary(max_size=3))
    path.write_bytes(good[:at] + piece + good[at + data.draw(st.integers(0, 3)) :])
    device.floors = NO_FLOORS
    try:
        trusted = device.look(NOW, units=[CARS])
    except Da3Error:
        pass
    else:
        release = trusted.releases.get(str(CARS))
        assert release is None or release.counter == 1
    finally:
        path.write_bytes(good)
        for cached in device.folder.glob("*.json"):
            cached.unlink()


@pytest.mark.parametrize("root", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"signed": 1}'])
def test_a_first_root_that_is_none(device: Device, root: bytes) -> None:
    device.root = root
    with pytest.raises(MalformedError, match=r"1\.root\.json"):
        device.look(NOW)


def test_a_cache_in_odd_forms(device: Device) -> None:
    """Folders, links and leavings in the cache are no reason to fail, or are said by name."""
    device.look(NOW)
    (device.folder / "tmpleft").write_bytes(b"x" * 100)
    (device.folder / "snapshot.json").write_bytes(b"x" * (2 << 20))
    assert device.look(NOW).releases
    assert not (device.folder / "tmpleft").exists()
    (device.folder / "timestamp.json").unlink()
    (device.folder / "timestamp.json").mkdir()
    with pytest.raises(StorageError, match="it is a cache"):
        device.look(NOW)


def test_a_connection_that_breaks_is_no_fault_of_the_cache(device: Device) -> None:
    def broken(asked: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield next(pieces)
        raise ConnectionResetError("reset by peer")

    device.fetcher.spoil = broken
    with pytest.raises(RepositoryError, match="reset by peer"):
        device.look(NOW)


def test_a_server_that_fails(device: Device) -> None:
    def failing(asked: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        raise DownloadHTTPError("bad gateway", 502)

    device.fetcher.spoil = failing
    with pytest.raises(RepositoryError, match="bad gateway"):
        device.look(NOW)


def test_floors_that_are_no_time(device: Device) -> None:
    device.floors = replace(NO_FLOORS, clock="yesterday")
    with pytest.raises(MalformedError, match=r"floors\.clock"):
        device.look(NOW)
