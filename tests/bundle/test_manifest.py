"""The manifest: one value, one text; every fault at once. Single faults: attacks_manifest.py."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import MANIFEST
from toolchain.bundle import FileEntry, Manifest, Note, Slot, read_bundle
from toolchain.bundle.manifest import SCHEMA
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Da3Error
from toolchain.core.words import DOMAIN, EXACT
from toolchain.recipe.spec import DOMAIN_NAME

FILES = (
    FileEntry("domain", "domain.onnx", sha256(b"d"), 1, "application/x-onnx"),
    FileEntry("golden", "golden.safetensors", sha256(b"g"), 1, "application/x-safetensors"),
    FileEntry("slots", "slots.safetensors", sha256(b"s"), 1, "application/x-safetensors"),
)
WHOLE = dataclasses.replace(MANIFEST, files=FILES)

NOTE_KEYS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,20}", fullmatch=True)
NOTES: st.SearchStrategy[dict[str, Note]] = st.dictionaries(
    NOTE_KEYS,
    st.none()
    | st.booleans()
    | st.integers(-EXACT, EXACT)
    | st.floats(-float(EXACT), float(EXACT))
    | st.text(max_size=30).filter(str.isprintable),
    max_size=8,
)
LABELS = st.text(min_size=1, max_size=30).filter(lambda t: t.isprintable() and t.strip())


@given(NOTES, st.lists(LABELS, min_size=1, max_size=5, unique=True), st.integers(0, EXACT))
def test_a_manifest_survives_its_text(
    notes: dict[str, Note], classes: list[str], counter: int
) -> None:
    """Law: from_json(to_json(m)) == m, and the text is a fixed point."""
    manifest = dataclasses.replace(
        WHOLE, provenance=notes, metrics=notes, classes=tuple(classes), release_counter=counter
    )
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize("pictures", ["test", "drawn"])
def test_schema_2_says_what_the_golden_pictures_are(pictures: str) -> None:
    selftest = dataclasses.replace(WHOLE.selftest, pictures=pictures)
    manifest = dataclasses.replace(WHOLE, schema=SCHEMA, selftest=selftest)
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert manifest.pictures == pictures
    without = tuple(entry for entry in FILES if entry.role != "golden")
    assert dataclasses.replace(manifest, files=without).pictures == "none"


def test_schema_1_has_no_such_key_and_held_test_pictures() -> None:
    assert b"pictures" not in WHOLE.to_json()
    assert WHOLE.pictures == "test"


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        ("da3.bundle/1", "drawn", "unknown key in schema da3.bundle/1"),
        ("da3.bundle/1", "test", "unknown key in schema da3.bundle/1"),
        ("da3.bundle/1", None, "expected one of test, drawn, got null"),
        ("da3.bundle/2", None, "expected one of test, drawn, got null"),
        ("da3.bundle/2", "none", "expected one of test, drawn"),
        ("da3.bundle/2", "absent", "missing key in schema da3.bundle/2"),
    ],
)
def test_a_bundle_cannot_leave_its_pictures_open(schema: str, value: str | None, told: str) -> None:
    document = json.loads(WHOLE.to_json()) | {"schema": schema}
    if value != "absent":
        document["selftest"]["pictures"] = value
    with pytest.raises(BundleError, match=f"selftest.pictures: {told}"):
        Manifest.from_json(canonical_json(document))


def test_what_was_read_cannot_be_changed() -> None:
    manifest = Manifest.from_json(WHOLE.to_json())
    with pytest.raises(TypeError):
        manifest.metrics["accuracy"] = 1.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.domain = "birds"  # type: ignore[misc]


def test_all_faults_are_reported_at_once() -> None:
    document: dict[str, Any] = json.loads(WHOLE.to_json())
    document["extra"] = 1
    del document["licence"]
    document["files"][1]["size"] = -1
    document["preprocess"]["std"][2] = "0.5"
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(canonical_json(document))
    for path in ("extra", "licence", "files[1].size", "preprocess.std[2]"):
        assert f"\n  {path}: " in caught.value.message
    assert "4 faults" in caught.value.message


def test_many_faults_are_counted_not_listed() -> None:
    document = json.loads(WHOLE.to_json())
    document["classes"] = [1] * 4000
    with pytest.raises(BundleError, match="4000 faults") as caught:
        Manifest.from_json(canonical_json(document))
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 2**53])
def test_numbers_that_json_cannot_carry_are_not_written(number: float) -> None:
    with pytest.raises(Da3Error, match="JSON"):
        dataclasses.replace(WHOLE, metrics={"x": number}).to_json()


@pytest.mark.parametrize("field", sorted(json.loads(WHOLE.to_json())))
def test_every_field_is_required(field: str) -> None:
    """Law: no field has a default that a reader would fill in silently; `patch` is a part more."""
    left_out = {f.name for f in dataclasses.fields(Manifest)} - set(json.loads(WHOLE.to_json()))
    assert left_out == {"patch"}
    document = json.loads(WHOLE.to_json())
    del document[field]
    with pytest.raises(BundleError, match=f"{field}: missing key"):
        Manifest.from_json(canonical_json(document))


@given(st.text(st.sampled_from("aZ9_-. é字\u0301/\n"), max_size=66))
def test_a_domain_is_called_as_in_its_recipe(name: str) -> None:
    """Law: the bundle takes exactly the domain names that a recipe takes."""
    assert DOMAIN.accepts(name) == DOMAIN_NAME.accepts(name)


def test_a_large_domain_fits_into_the_limit() -> None:
    """A 50-layer backbone with six slots a block and 196 classes stays below 64 KiB."""
    slots = tuple(
        Slot(f"layer{k:02}.adaptor.part{j}.weight", (256, 64, 1, 1), "float32", sha256(b"x"))
        for k in range(16)
        for j in range(6)
    )
    adaptor = dataclasses.replace(MANIFEST.adaptor, slots=slots)
    classes = tuple(f"a car of a make and model, number {at}" for at in range(196))
    text = dataclasses.replace(WHOLE, adaptor=adaptor, classes=classes).to_json()
    assert len(text) < 48 * 1024
    assert Manifest.from_json(text).adaptor == adaptor


def test_the_packed_manifest_is_complete(good: bytes) -> None:
    manifest = read_bundle(good).manifest
    assert [entry.name for entry in manifest.files] == [
        "domain.onnx",
        "golden.safetensors",
        "recipe.yaml",
        "slots.safetensors",
    ]
    assert [slot.name for slot in manifest.adaptor.slots] == [
        "block01.adaptor.reduce.weight",
        "block01.gate.bias",
        "head.weight",
    ]
