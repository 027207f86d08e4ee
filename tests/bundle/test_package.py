"""Packing, opening, verifying and unpacking whole bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.support.samples import MANIFEST, PAYLOADS
from toolchain.bundle import Payload, created_now, open_bundle, pack, unpack, verify
from toolchain.bundle.manifest import SCHEMA
from toolchain.core.errors import (
    BundleError,
    ExistsError,
    StorageError,
    UnknownNameError,
    UsageError,
)

RELEASED = Path(__file__).parent.parent / "bundles"


def test_what_is_packed_is_read(good_path: Path) -> None:
    bundle = open_bundle(good_path)
    for payload in PAYLOADS:
        assert bundle.blob(payload.name) == payload.data
        assert bundle.names(payload.role) == (payload.name,)
    assert bundle.names("swap") == ()
    assert bundle.size_bytes == good_path.stat().st_size
    assert replace(bundle.manifest, files=(), adaptor=MANIFEST.adaptor) == MANIFEST


def test_same_inputs_same_bytes(good: bytes, tmp_path: Path) -> None:
    """Law: the bundle is a function of manifest and payloads, not of their order or the clock."""
    pack(tmp_path / "a.da3b", MANIFEST, PAYLOADS[::-1])
    assert (tmp_path / "a.da3b").read_bytes() == good


@given(st.binary(max_size=2000), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_packing_again_what_was_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, copies: int
) -> None:
    """Law: pack(read(bundle)) is the same file; equal files share one blob."""
    folder = tmp_path_factory.mktemp("again")
    swaps = [Payload("swap", f"swap-{at}.onnx", data) for at in range(copies)]
    pack(folder / "a", MANIFEST, [*PAYLOADS, *swaps])
    bundle = open_bundle(folder / "a")
    files = bundle.manifest.files
    again = [Payload(entry.role, entry.name, bundle.blob(entry.name)) for entry in files]
    pack(folder / "b", bundle.manifest, again)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    pack(folder / "one", MANIFEST, [*PAYLOADS, swaps[0]])
    extra = (folder / "a").stat().st_size - (folder / "one").stat().st_size
    # One blob; only the manifest grows with the number of names.
    assert extra <= 512 * copies


def test_an_existing_bundle_is_kept(good_path: Path) -> None:
    before = good_path.read_bytes()
    with pytest.raises(ExistsError):
        pack(good_path, MANIFEST, PAYLOADS[1:])
    assert good_path.read_bytes() == before


def test_overwriting_is_asked_for(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "a.da3b"
    path.write_bytes(b"old")
    pack(path, MANIFEST, PAYLOADS, overwrite=True)
    assert path.read_bytes() == good
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.da3b"]


@pytest.mark.parametrize(
    ("payloads", "says"),
    [
        (PAYLOADS[:2], "one file of role 'slots', got 0"),
        ([*PAYLOADS, PAYLOADS[0]], "each name once"),
        ([*PAYLOADS, Payload("swap", "Swap.onnx", b"")], r"files\[0\].name"),
        ([*PAYLOADS, Payload("other", "x", b"")], "role: expected one of"),
        ([*PAYLOADS[:2], PAYLOADS[3], Payload("slots", "s", b"x")], "s: expected a safetensors"),
        (
            [*PAYLOADS[:2], PAYLOADS[3], Payload("slots", "s", save({"a": np.array([np.nan])}))],
            "a: expected finite values",
        ),
    ],
)
def test_what_no_reader_accepts_is_not_written(
    tmp_path: Path, payloads: list[Payload], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        pack(tmp_path / "a.da3b", MANIFEST, payloads)
    assert list(tmp_path.iterdir()) == []


def test_verify_lists_what_it_checked(good_path: Path) -> None:
    report = verify(good_path)
    assert report.manifest_digest == open_bundle(good_path).manifest_digest
    assert [line.split(":")[0] for line in report.checks] == [
        "archive",
        "manifest",
        "files",
        "slots",
    ]


def test_unpack_writes_every_file(good_path: Path, tmp_path: Path) -> None:
    manifest = unpack(good_path, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest.to_json()
    for payload in PAYLOADS:
        assert (tmp_path / "out" / payload.name).read_bytes() == payload.data
    assert len(list((tmp_path / "out").iterdir())) == len(PAYLOADS) + 1
    with pytest.raises(ExistsError):
        unpack(good_path, tmp_path / "out")


def test_an_unknown_file_is_named_with_the_nearest(good_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean domain\.onnx"):
        open_bundle(good_path).blob("domains.onnx")


def test_the_path_is_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "bad.da3b").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"bad\.da3b: bundle: expected"):
        open_bundle(tmp_path / "bad.da3b")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.da3b"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="at most 536870912 bytes"):
        open_bundle(path)


def test_the_clock_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert created_now() == "1970-01-01T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert created_now() == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "now", "٣", "9" * 13, "253402300800"])
def test_an_odd_epoch_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        created_now()


@pytest.mark.parametrize(
    "path", sorted(RELEASED.glob("*/*.da3b")), ids=lambda path: path.parent.name
)
def test_every_released_version_is_read_for_ever(path: Path, tmp_path: Path) -> None:
    """Law: a bundle of a released version opens, and packing it again gives the same file."""
    bundle = open_bundle(path)
    assert bundle.manifest.schema == f"da3.bundle/{path.parent.name}"
    again = [Payload(e.role, e.name, bundle.blob(e.name)) for e in bundle.manifest.files]
    pack(tmp_path / "again", bundle.manifest, again)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_there_is_a_bundle_of_every_schema() -> None:
    newest = int(SCHEMA.rpartition("/")[2])
    folders = {path.parent.name for path in RELEASED.glob("*/*.da3b")}
    assert folders == {str(number) for number in range(1, newest + 1)}


def test_the_bundles_of_schema_2_have_what_it_brought() -> None:
    """A drawn self-test, what a precision costs, a patch: else nothing would hold these."""
    sample, patched = (
        open_bundle(RELEASED / "2" / f"{name}.da3b").manifest for name in ("sample", "patched")
    )
    assert (sample.selftest.pictures, patched.selftest.pictures) == ("drawn", "test")
    assert [plan.precision for plan in sample.plans] == ["fp16"]
    assert sample.patch is None
    assert patched.patch is not None
