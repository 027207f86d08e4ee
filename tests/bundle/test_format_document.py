"""docs/bundle-format.md says what the code does: tables, limits and the worked example."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from toolchain.bundle import archive, backbone, golden, manifest, read_bundle
from toolchain.bundle.backbone import (
    BackboneBlock,
    BackboneFile,
    BackboneInput,
    BackboneManifest,
)
from toolchain.bundle.manifest import (
    Adaptation,
    BackboneRef,
    FileEntry,
    GateBlock,
    Gates,
    GateStates,
    Manifest,
    PrecisionCost,
    Requires,
    Selftest,
    Slot,
    Tap,
)
from toolchain.core import canonical
from toolchain.core.fields import ListOf, Nullable, Section, SectionOf, TableOf, rules
from toolchain.core.words import NOTE, NOTES
from toolchain.pictures.preprocess import Preprocessing

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle-format.md"
RECORDS: list[type[Section]] = [
    Manifest, FileEntry, BackboneRef, Tap, Adaptation, Slot, Preprocessing, Gates, GateBlock,
    Requires, Selftest, GateStates, PrecisionCost,
    BackboneManifest, BackboneFile, BackboneInput, BackboneBlock,
]  # fmt: skip


def words(rule: Any) -> str:
    """Return a rule as the document's second column shows it."""
    if rule is NOTES:
        return "notes"
    match rule:
        case SectionOf(section=section):
            return f"{section.__name__}"
        case Nullable(rule=inner):
            return f"{words(inner)}, or null"
        case ListOf(item=item, low=low, high=high):
            return f"list of {low} to {high}: {words(item)}"
        case TableOf(name=name, item=item, low=low, high=high):
            return f"table of {low} to {high}, key {words(name)}: {words(item)}"
    if known := getattr(rule, "known", None):
        return " or ".join(f"`{word}`" for word in known)
    return str(rule.expected)


def table(text: str, record: str) -> dict[str, tuple[str, str]]:
    """Return the rows below the heading of ``record``: field to (type, meaning)."""
    (section,) = re.findall(rf"^#+ {record}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    return {field: (kind, meaning) for field, kind, meaning in rows}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_table_of_a_record_is_its_schema(record: type[Section]) -> None:
    rows = table(DOCUMENT.read_text(encoding="utf-8"), record.__name__)
    assert {field: kind for field, (kind, _) in rows.items()} == {
        field: words(rule) for field, rule in rules(record).items()
    }
    assert list(rows) == list(rules(record))
    assert all(meaning.strip() for _, meaning in rows.values())


def test_the_limits_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    limits = dict(re.findall(r"^\| limit: (.*?) \| ([0-9]+) \|$", text, re.MULTILINE))
    assert {name: int(value) for name, value in limits.items()} == {
        "bytes of a bundle": archive.LIMIT_BYTES,
        "bytes of a JSON document": canonical.LIMIT_BYTES,
        "nesting of a JSON document": canonical.LIMIT_DEPTH,
        "files of a bundle": manifest.LIMIT_FILES,
        "bytes of the golden pictures of all cases": golden.MAX_PIXEL_BYTES,
        "bytes of a backbone file": backbone.LIMIT_FILE_BYTES,
    }


def test_the_header_is_described_byte_by_byte(good: bytes) -> None:
    """The document's table of the ustar header builds the header of the first member."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([0-9]+) \| ([0-9]+) \| (\w+) \| (.*?) \|$", text, re.MULTILINE)
    assert next(int(at) for at, *_ in rows) == 0
    assert sum(int(size) for _, size, *_ in rows) == 512
    block = bytearray(good[:512])
    for at, size, name, content in rows:
        field = bytes(block[int(at) : int(at) + int(size)])
        if literal := re.fullmatch(r"`(.*)`", content):
            assert field == json.loads(f'"{literal[1]}"').encode(), name
        elif content == "zero bytes":
            assert not any(field), name


def test_the_index_is_shown(good: bytes) -> None:
    """The document shows index.json with placeholders; filled in, it is that of a bundle."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (shown,) = re.findall(r"^(\{\"manifests\".*\})$", text, re.MULTILINE)
    bundle = read_bundle(good)
    digest, size = bundle.manifest_digest, len(bundle.manifest.to_json())
    filled = shown.replace("sha256:<hex>", digest).replace("<size>", str(size))
    assert good[1536 : 1536 + len(filled)] == filled.encode()


def test_notes_are_described() -> None:
    text = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    key, low, high = NOTES.name.expected, NOTES.low, NOTES.high
    assert f"table of {low} to {high} entries, key {key}, value {NOTE.expected}" in text


def test_roles_and_kinds_of_files_are_listed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    listed = re.findall(r"^\| role `(\w+)` \|", text, re.MULTILINE)
    assert tuple(listed) == manifest.ROLES
