"""One set of limits: the largest document of a schema fits, and what cannot fit is told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from toolchain.bundle import BackboneManifest, Manifest
from toolchain.bundle.limits import MAX_BLOCKS, MAX_CLASSES, MAX_SLOTS, require_packable
from toolchain.bundle.manifest import Slot
from toolchain.core import canonical, words
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import UsageError
from toolchain.core.fields import ListOf, Nullable, Section, SectionOf, TableOf, rules
from toolchain.core.safetensors import LIMIT_HEADER_BYTES
from toolchain.device.engine.cache import EngineManifest
from toolchain.device.store.installed import InstalledRecord

# Printable, and four bytes in UTF-8: no character takes more.
WIDE = "\U0001f600"
TEXTS = {
    words.DIGEST: "sha256:" + "0" * 64,
    words.FILE_NAME: "a" * 64,
    words.TENSOR_NAME: "a" * 200,
    words.WORD: "a" * 64,
    words.IDENTIFIER: "a" * 64,
    words.TARGET: "a" * 64,
    words.DOMAIN: WIDE * 64,
    words.VERSION: "a" * 64,
    words.AGENT: "12345.12345.12345",
    words.TIME: "1970-01-01T00:00:00Z",
    words.MEDIA_TYPE: "a" * 20 + "/" + "a" * 100,
    words.NOTE: WIDE * 1000,
}
# A kit's models have lists inside lists, whose sizes would multiply: bytes alone bound it.
DOCUMENTS: list[type[Section]] = [
    Manifest, BackboneManifest, EngineManifest, InstalledRecord,
]  # fmt: skip


def largest(rule: Any) -> Any:
    """A value of ``rule`` with as much text as it takes."""
    match rule:
        case SectionOf(section=section):
            return section_of(section)
        case Nullable(rule=inner):
            return largest(inner)
        case ListOf(item=item, high=high):
            return [largest(item)] * high
        case TableOf(name=name, item=item, high=high):
            # Names must differ: the last characters count them.
            text = largest(name)
            return {f"{text[:-5]}{i:05d}": largest(item) for i in range(high)}
    if rule in TEXTS:
        return TEXTS[rule]
    if known := getattr(rule, "known", None):
        return max(known, key=len)
    if lines := re.fullmatch(r"text of 1 to (\d+) printable characters", rule.expected):
        return WIDE * int(lines[1])
    if "whole number" in rule.expected:
        return int(rule.expected.split()[-1])
    if rule.expected.startswith("a number"):
        return 0.12345678901234567
    if rule.expected == "true or false":
        return False
    if "offset" in rule.expected:  # a row of an installed domain's slots
        return ["a" * 200, "float32", [2**31] * 8, 2**29]
    return "a" * int(re.findall(r"\{\d+,(\d+)\}", rule.expected)[-1])


def section_of(section: type[Section]) -> dict[str, Any]:
    return {name: largest(rule) for name, rule in rules(section).items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
def test_the_largest_document_of_a_schema_fits(document: type[Section]) -> None:
    size = len(canonical_json(section_of(document)))
    assert size <= canonical.LIMIT_BYTES
    assert size > 1 << 16, "so many entries that 64 KiB would contradict them"


def test_the_header_of_as_many_slots_fits() -> None:
    entry = {"dtype": "BF16", "shape": [2**31] * 8, "data_offsets": [2**29, 2**29]}
    assert MAX_SLOTS * len(canonical_json({"a" * 200: entry})) <= LIMIT_HEADER_BYTES


def test_a_deep_net_with_norms_in_every_adaptor_fits() -> None:
    """ResNet-110 with a gate and a norm for each block, which 64 KiB refused after the training."""
    parts = ("reduce.weight", "reduce.bias", "norm.weight", "norm.bias", "norm.running_mean")
    slots = {
        f"block{i:02d}.adaptor.{part}": ("float32", (16, 16, 1, 1))
        for i in range(54)
        for part in (*parts, "norm.running_var", "expand.weight", "expand.bias")
    }
    blocks = [f"block{i:02d}" for i in range(54)]
    require_packable(blocks=blocks, slots=slots, classes=["a", "b"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks": ["b"] * (MAX_BLOCKS + 1)}, f"blocks: expected a list of 1 to {MAX_BLOCKS}"),
        ({"classes": [str(i) for i in range(MAX_CLASSES + 1)]}, "classes: expected a list of 1 to"),
        ({"classes": ["x" * 201]}, "classes[0]: expected text of 1 to 200"),
        ({"classes": ["x", "x"]}, "classes: expected each name once"),
        ({"classes": []}, "classes: expected a list"),
        (
            {"slots": {f"s{i}": ("float32", (1,)) for i in range(MAX_SLOTS + 1)}},
            f"slots: expected a list of 0 to {MAX_SLOTS}",
        ),
        ({"slots": {"a b": ("float32", (1,))}}, "slots[0]: expected"),
        ({"slots": {"a": ("complex64", (1,))}}, "slots.a: expected one of bool"),
        ({"slots": {"a": ("float32", (1,) * 9)}}, "slots.a: expected a list of 0 to 8"),
    ],
)
def test_what_can_never_be_packed_is_told(change: dict[str, Any], told: str) -> None:
    domain: dict[str, Any] = {"blocks": ["b"], "slots": {}, "classes": ["x"], **change}
    with pytest.raises(UsageError) as caught:
        require_packable(**domain)
    assert told in caught.value.message
    assert caught.value.fix


def test_the_question_has_the_rules_of_the_manifest() -> None:
    """Law: names, shapes and dtypes are read by the very rules that a manifest has."""
    assert rules(Slot)["name"] is words.TENSOR_NAME
    assert rules(Slot)["shape"] is words.SHAPE
    assert rules(Slot)["dtype"] is words.DTYPE
    assert set(rules(Slot)) == {"name", "shape", "dtype", "digest"}
