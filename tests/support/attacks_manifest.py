"""Hostile manifests and slots, each in an archive whose every digest is right.

``ATTACKS`` maps the name of the attack to its function and to the words of its error, as in
``attacks_archive.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.support.archives import read_archive
from tests.support.attacks_archive import Attack, Edit
from tests.support.samples import SLOTS, edited, resealed, with_slots

ATTACKS: dict[str, Attack] = {}


# The manifest: JSON


def text_attack(name: str, says: str, change: Callable[[bytes], bytes]) -> None:
    """Register an attack on the manifest's text; every digest around it is right."""

    def make(good: bytes) -> bytes:
        archive = read_archive(good)
        return resealed(good, change(bytes(archive.blobs[archive.manifest_digest])))

    ATTACKS[name] = Attack(make, says)


def _replaced(new: bytes, text: bytes) -> bytes:
    return text.replace(_DOMAIN, new)


_DOMAIN = b'"domain":"cars"'
for _name, _says, _new in (
    ("duplicate_json_key", "the key 'domain' twice", _DOMAIN + b"," + _DOMAIN),
    ("nan_in_manifest", "the number NaN", b'"domain":NaN'),
    ("infinity_in_manifest", "the number -Infinity", b'"domain":-Infinity'),
    ("number_too_large_for_a_float", "expected canonical JSON", b'"domain":1e999'),
    ("integer_beyond_2_53", "expected canonical JSON", b'"domain":9007199254740993'),
    ("integer_of_5000_digits", "expected canonical JSON", b'"domain":' + b"9" * 5000),
    ("float_written_with_a_zero", "expected canonical JSON", b'"domain":1.0'),
    ("escaped_letter", "expected canonical JSON", b'"domain":"\\u0063ars"'),
    ("lone_surrogate", "expected canonical JSON", b'"domain":"\\ud800"'),
    ("comment_in_json", "expected canonical JSON", b"/* */" + _DOMAIN),
    ("trailing_comma", "expected canonical JSON", _DOMAIN + b","),
    ("not_utf8", "expected canonical JSON", b'"domain":"\xff"'),
    ("deep_json", "nesting of at most 12", b'"domain":' + b"[" * 3000 + b"]" * 3000),
):
    text_attack(_name, _says, partial(_replaced, _new))

text_attack("huge_manifest", "at most 16777216 bytes", lambda text: text + b" " * (16 << 20))
text_attack("non_canonical_manifest", "expected canonical JSON", lambda text: text + b"\n")
text_attack("byte_order_mark", "expected canonical JSON", lambda text: b"\xef\xbb\xbf" + text)
text_attack("utf16_manifest", "expected canonical JSON", lambda t: t.decode().encode("utf-16"))
text_attack("empty_manifest", "expected canonical JSON", lambda text: b"")
text_attack("half_a_manifest", "expected canonical JSON", lambda text: text[: len(text) // 2])
text_attack("list_at_the_top", "expected a JSON object", lambda text: b"[" + text + b"]")
text_attack("only_brackets", "nesting of at most 12", lambda text: b"[" * 65536)
text_attack(
    "brackets_hidden_by_a_quote", "Unterminated string", lambda text: b'"\\"' + b"[" * 60000
)


# The manifest: fields


def field_attack(name: str, says: str, edit: Edit) -> None:
    """Register an attack on a field of the manifest; its text is canonical, its digest right."""
    ATTACKS[name] = Attack(lambda good: edited(good, edit), says)


def _put(*path: Any, value: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


for _name, _says, _edit in (
    ("unknown_field", "run_this: unknown key", _put("run_this", value="rm")),
    ("unknown_nested_field", "files[0].url: unknown key", _put("files", 0, "url", value="x")),
    ("missing_field", "licence: missing key", lambda d: d.pop("licence")),
    ("another_schema", "schema: expected", _put("schema", value="da3.bundle/3")),
    ("table_instead_of_list", "files: expected a list", _put("files", value={})),
    ("null_instead_of_table", "gates: expected", _put("gates", value=None)),
    ("bool_as_number", "release_counter: expected", _put("release_counter", value=True)),
    ("text_as_number", "release_counter: expected", _put("release_counter", value="1")),
    ("negative_size", "files[0].size: expected", _put("files", 0, "size", value=-1)),
    ("size_in_the_manifest_lies", "bytes, got", _put("files", 0, "size", value=7)),
    ("file_name_with_a_path", "files[0].name: expected", _put("files", 0, "name", value="../x")),
    ("file_name_hidden", "files[0].name: expected", _put("files", 0, "name", value=".bashrc")),
    ("file_name_in_capitals", "files[0].name: expected", _put("files", 0, "name", value="A.onnx")),
    ("file_name_with_newline", "files[0].name: expected", _put("files", 0, "name", value="a\n")),
    ("file_name_of_65", "files[0].name: expected", _put("files", 0, "name", value="a" * 65)),
    ("file_name_of_the_manifest", "is taken", _put("files", 0, "name", value="manifest.json")),
    ("file_twice", "each name once", lambda d: d["files"].append(d["files"][0])),
    ("role_unknown", "files[0].role: expected", _put("files", 0, "role", value="script")),
    ("role_twice", "one file of role 'domain', got 2", _put("files", 2, "role", value="domain")),
    ("digest_in_capitals", "digest: expected", _put("files", 0, "digest", value="SHA256:AB")),
    ("digest_of_another_kind", "digest: expected", _put("files", 0, "digest", value="md5:00")),
    ("no_files", "files: expected a list of 1 to 256", _put("files", value=[])),
    ("class_twice", "classes: expected each name once", _put("classes", value=["a", "a"])),
    ("class_with_escape_codes", "classes[0]: expected", _put("classes", 0, value="\x1b[2J")),
    ("share_above_one", "executed_share: expected", _put("gates", "executed_share", value=1.5)),
    ("std_of_zero", "preprocess.std[0]: expected", _put("preprocess", "std", 0, value=0)),
    ("crop_unheard_of", "preprocess.crop: expected one of", _put("preprocess", "crop", value="x")),
    ("picture_too_large", "preprocess.size: expected", _put("preprocess", "size", value=2000)),
    ("mean_of_two", "preprocess.mean: expected", _put("preprocess", "mean", value=[0, 0])),
    ("time_that_never_was", "created: expected", _put("created", value="2026-02-30T00:00:00Z")),
    ("time_of_another_zone", "created: expected", _put("created", value="2026-02-03T00:00:00+01")),
    ("plan_of_nothing", "plans[0].target: missing key", _put("plans", value=[{}])),
    ("nested_note", "provenance.x: expected", _put("provenance", "x", value={"y": 1})),
    ("note_with_newline", "provenance.x: expected", _put("provenance", "x", value="a\nb")),
    ("note_too_long", "provenance.x: expected", _put("provenance", "x", value="a" * 1001)),
    ("note_key_with_space", "provenance (key): expected", _put("provenance", "a b", value=1)),
    ("too_many_notes", "256 entries", _put("provenance", value={f"k{i}": 0 for i in range(257)})),
    ("golden_role_without_file", "selftest.outputs", _put("selftest", "outputs", value="training")),
    ("gate_of_an_unknown_block", "gateable block", lambda d: d["selftest"]["gate_states"].update(
        block09={"open": 1, "closed": 1, "forced": False})),
    ("gate_of_an_ungated_block", "gateable block", lambda d: d["selftest"]["gate_states"].update(
        block02={"open": 1, "closed": 1, "forced": False})),
    ("slot_listed_twice", "each name once", lambda d: d["adaptor"]["slots"].insert(
        0, d["adaptor"]["slots"][0])),
    ("files_out_of_order", "sorted order", lambda d: d["files"].reverse()),
    ("domain_with_a_path", "domain: expected", _put("domain", value="../cars")),
    ("domain_hidden", "domain: expected", _put("domain", value=".cars")),
    ("slots_out_of_order", "sorted order", lambda d: d["adaptor"]["slots"].reverse()),
    ("slot_listed_but_missing", "missing slot", lambda d: d["adaptor"]["slots"].append(
        {**d["adaptor"]["slots"][0], "name": "zzz"})),
    ("slot_wrong_digest", "expected digest", lambda d: d["adaptor"]["slots"][0].update(
        digest=d["adaptor"]["slots"][1]["digest"])),
):  # fmt: skip
    field_attack(_name, _says, _edit)


# The slots


def slots_attack(name: str, says: str, slots: Callable[[], bytes]) -> None:
    """Register an attack on the slots file; every digest around it is right."""
    ATTACKS[name] = Attack(lambda good: with_slots(good, slots()), says)


def raw_slots(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one_slot(**fields: Any) -> dict[str, Any]:
    return {"head.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}


_HEAD = SLOTS["head.weight"]
_BIAS = "block01.gate.bias"
for _name, _says, _slots in (
    ("slot_missing", "missing slot", {k: v for k, v in SLOTS.items() if k != _BIAS}),
    ("slot_extra", "extra slot", {**SLOTS, "extra": _HEAD}),
    ("slot_wrong_shape", "expected shape", {**SLOTS, "head.weight": _HEAD.T.copy()}),
    ("slot_wrong_dtype", "expected dtype", {**SLOTS, "head.weight": _HEAD.astype(np.float32)}),
    ("slot_changed", "expected digest", {**SLOTS, "head.weight": 2 * _HEAD}),
    ("slot_not_finite", "NaN or infinity", {**SLOTS, _BIAS: np.full(1, np.nan, np.float32)}),
    ("slot_infinite", "NaN or infinity", {**SLOTS, _BIAS: np.full(1, -np.inf, np.float64)}),
    ("half_slot_infinite", "NaN or infinity", {**SLOTS, _BIAS: np.full(1, np.inf, np.float16)}),
    ("slot_of_unlisted_dtype", "got dtype U32", {**SLOTS, _BIAS: np.zeros(1, np.uint32)}),
):  # fmt: skip
    slots_attack(_name, _says, partial(save, _slots))

for _name, _says, _raw in (
    ("slots_empty_file", "expected a safetensors file", b""),
    ("slots_pickle", "expected a safetensors file", b"\x80\x04cos\nsystem\n."),
    ("slots_huge_header", "expected a safetensors file", b"\xff" * 16),
    ("slots_header_not_json", "expected a safetensors file", raw_slots(b"nonsense", b"")),
    ("slots_bfloat16_nan", "NaN or infinity",
     raw_slots(one_slot(dtype="BF16", data_offsets=[0, 4]), b"\x00\x3f\xc0\x7f")),
    ("slots_name_twice", "the key 'head.weight' twice",
     raw_slots(json.dumps(one_slot()).encode()[:-1] + b", " + json.dumps(one_slot()).encode()[1:],
               bytes(8))),
    ("slots_offsets_outside", "expected a safetensors file",
     raw_slots(one_slot(data_offsets=[0, 80], shape=[20]), bytes(8))),
    ("slots_offsets_backwards", "expected a safetensors file",
     raw_slots(one_slot(data_offsets=[8, 0]), bytes(8))),
    ("slots_shape_overflow", "expected a safetensors file",
     raw_slots(one_slot(shape=[2**62, 2**62]), bytes(8))),
    ("slots_shape_lies", "expected a safetensors file", raw_slots(one_slot(shape=[3]), bytes(8))),
    ("slots_hole", "expected a safetensors file",
     raw_slots(one_slot(data_offsets=[8, 16]), bytes(16))),
    ("slots_trailing_bytes", "expected a safetensors file", raw_slots(one_slot(), bytes(16))),
):  # fmt: skip
    slots_attack(_name, _says, partial(bytes, _raw))
