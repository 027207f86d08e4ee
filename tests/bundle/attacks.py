"""Hostile bundles, each made from a good one by the function that is named after the attack.

They are made by code because 8 KiB of tar tells a reader nothing. ``ATTACKS`` maps the name to
the function and to the words that the error must contain: each attack is refused for its own
reason, not for a digest that happens to differ as well.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from toolchain.bundle.archive import read_archive, write_archive
from toolchain.digest import canonical_json, sha256

from .samples import SLOTS, edited, resealed, with_slots

Make = Callable[[bytes], bytes]
Edit = Callable[[dict[str, Any]], Any]


class Attack(NamedTuple):
    make: Make
    says: str


ATTACKS: dict[str, Attack] = {}


def refused(says: str) -> Callable[[Make], Make]:
    """Register an attack together with the words of its error."""

    def register(make: Make) -> Make:
        ATTACKS[make.__name__] = Attack(make, says)
        return make

    return register


# The archive: members


def members(good: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(good)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def built(entries: list[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar by an implementation that is not ours, cut to the two closing blocks."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return stream.getvalue()[:end] + bytes(1024)


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def extra_member(good: bytes, name: str, data: bytes = b"", **fields: Any) -> bytes:
    return built([*members(good), member(name, data, **fields)])


@refused("unexpected member '../evil'")
def path_traversal_member(good: bytes) -> bytes:
    return extra_member(good, "../evil", b"x")


@refused("unexpected member '/etc/passwd'")
def absolute_path_member(good: bytes) -> bytes:
    return extra_member(good, "/etc/passwd", b"x")


@refused("unexpected member 'blobs/sha256/../../../evil'")
def traversal_inside_the_blob_folder(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/../../../evil", b"x")


@refused("unexpected member 'README'")
def unexpected_member(good: bytes) -> bytes:
    return extra_member(good, "README", b"x")


@refused("got a symbolic link")
def symlink_member(good: bytes) -> bytes:
    name = "blobs/sha256/" + "f" * 64
    return extra_member(good, name, type=tarfile.SYMTYPE, linkname="/etc/shadow")


@refused("got a hard link")
def hardlink_member(good: bytes) -> bytes:
    name = "blobs/sha256/" + "f" * 64
    return extra_member(good, name, type=tarfile.LNKTYPE, linkname="index.json")


@refused("got a directory")
def directory_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/", type=tarfile.DIRTYPE)


@refused("got a character device")
def device_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/zero", type=tarfile.CHRTYPE)


@refused("got a pipe")
def pipe_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/pipe", type=tarfile.FIFOTYPE)


@refused("got a GNU long name")
def gnu_longname(good: bytes) -> bytes:
    return extra_member(good, "././@LongLink", b"x" * 120, type=tarfile.GNUTYPE_LONGNAME)


@refused("got a pax header")
def pax_header(good: bytes) -> bytes:
    entries = members(good)
    entries[2][0].pax_headers = {"comment": "hello"}
    return built(entries, tarfile.PAX_FORMAT)


@refused("got a global pax header")
def global_pax_header(good: bytes) -> bytes:
    return extra_member(good, "pax", b"12 path=xyz\n", type=tarfile.XGLTYPE)


@refused("got a GNU sparse file")
def sparse(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/" + "f" * 64, b"x", type=tarfile.GNUTYPE_SPARSE)


@refused("each member once and in sorted order")
def duplicate_member(good: bytes) -> bytes:
    entries = members(good)
    return built([*entries, entries[-1]])


@refused("each member once and in sorted order")
def members_out_of_order(good: bytes) -> bytes:
    entries = members(good)
    return built([*entries[:2], *reversed(entries[2:])])


@refused("at most 259 members")
def too_many_blobs(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    blobs |= {sha256(b"%d" % at): b"%d" % at for at in range(300)}
    return write_archive(blobs, archive.manifest_digest)


@refused("a blob that no file names")
def blob_that_nobody_names(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    return write_archive(blobs | {sha256(b"stowaway"): b"stowaway"}, archive.manifest_digest)


@refused("expected the blob sha256:")
def blob_missing(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    del blobs[next(digest for digest in blobs if digest != archive.manifest_digest)]
    return write_archive(blobs, archive.manifest_digest)


@refused("expected bytes with that digest")
def blob_swapped(good: bytes) -> bytes:
    entries = members(good)
    (a, a_data), (b, b_data) = entries[-2:]
    a.size, b.size = b.size, a.size
    return built([*entries[:-2], (a, b_data), (b, a_data)])


@refused("expected the member oci-layout")
def layout_missing(good: bytes) -> bytes:
    return built(members(good)[1:])


@refused("expected the member oci-layout")
def layout_of_another_version(good: bytes) -> bytes:
    return built([member("oci-layout", b'{"imageLayoutVersion":"2.0.0"}'), *members(good)[1:]])


@refused("expected the member index.json")
def index_missing(good: bytes) -> bytes:
    entries = members(good)
    return built([entries[0], *entries[2:]])


def with_index(good: bytes, edit: Edit) -> bytes:
    entries = members(good)
    index = json.loads(entries[1][1])
    edit(index)
    return built([entries[0], member("index.json", canonical_json(index)), *entries[2:]])


@refused("index.json: expected one descriptor")
def index_with_two_manifests(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"].append(index["manifests"][0]))


@refused("index.json: expected one descriptor")
def index_with_an_address(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"][0].update(urls=["http://x/"]))


@refused("bytes, got none")
def index_with_a_lying_size(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"][0].update(size=1))


@refused("bytes, got none")
def index_of_a_manifest_that_is_not_there(good: bytes) -> bytes:
    return with_index(good, lambda i: i["manifests"][0].update(digest="sha256:" + "0" * 64))


@refused("index.json: expected canonical JSON")
def index_with_white_space(good: bytes) -> bytes:
    entries = members(good)
    spaced = json.dumps(json.loads(entries[1][1])).encode()
    return built([entries[0], member("index.json", spaced), *entries[2:]])


@refused("manifest.json: expected")
def index_that_points_at_another_blob(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    return write_archive(blobs, next(d for d in blobs if d != archive.manifest_digest))


# The archive: bytes


def with_header(good: bytes, at: int, value: bytes) -> bytes:
    """Return ``good`` with bytes of its second header changed and the checksum made right."""
    start = 1024
    block = bytearray(good[start : start + 512])
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return good[:start] + bytes(block) + good[start + 512 :]


@refused("truncated?")
def size_lies(good: bytes) -> bytes:
    return with_header(good, 124, b"%011o" % 10**6)


@refused("plain ustar header")
def size_in_base_256(good: bytes) -> bytes:
    return with_header(good, 124, b"\x80" + bytes(10) + b"\x80")


@refused("plain ustar header")
def size_is_negative(good: bytes) -> bytes:
    return with_header(good, 124, b"-0000000001")


@refused("truncated?")
def size_of_eight_gigabytes(good: bytes) -> bytes:
    return with_header(good, 124, b"7" * 11)


@refused("plain ustar header")
def executable_mode(good: bytes) -> bytes:
    return with_header(good, 100, b"0004755")


@refused("plain ustar header")
def owner_name(good: bytes) -> bytes:
    return with_header(good, 265, b"root")


@refused("plain ustar header")
def time_not_zero(good: bytes) -> bytes:
    return with_header(good, 136, b"00000000001")


@refused("plain ustar header")
def prefix_field(good: bytes) -> bytes:
    return with_header(good, 345, b"..")


@refused("plain ustar header")
def bytes_behind_the_name(good: bytes) -> bytes:
    return with_header(good, 90, b"hidden")


@refused("plain ustar header")
def link_name_of_a_regular_file(good: bytes) -> bytes:
    return with_header(good, 157, b"/etc/shadow")


@refused("plain ustar header")
def old_kind_of_regular_file(good: bytes) -> bytes:
    return with_header(good, 156, b"\0")


@refused("plain ustar header")
def unknown_kind(good: bytes) -> bytes:
    return with_header(good, 156, b"Z")


@refused("plain ustar header")
def gnu_magic(good: bytes) -> bytes:
    return with_header(good, 257, b"ustar  \0")


@refused("plain ustar header")
def wrong_checksum(good: bytes) -> bytes:
    return good[:148] + b"000000\0 " + good[156:]


@refused("expected zero padding")
def padding_not_zero(good: bytes) -> bytes:
    return good[:1000] + b"x" + good[1001:]


@refused("the end of the file")
def trailing_garbage(good: bytes) -> bytes:
    return good + b"x"


@refused("the end of the file")
def trailing_zero_blocks(good: bytes) -> bytes:
    return good + bytes(8192)


@refused("the end of the file")
def second_archive_behind_the_first(good: bytes) -> bytes:
    return good + good


@refused("truncated?")
def end_missing(good: bytes) -> bytes:
    return good[:-1024]


@refused("the end of the file")
def half_of_the_end(good: bytes) -> bytes:
    return good[:-512]


@refused("truncated?")
def empty_file(good: bytes) -> bytes:
    return b""


@refused("expected the member oci-layout")
def only_the_end(good: bytes) -> bytes:
    return bytes(1024)


@refused("plain ustar header")
def compressed(good: bytes) -> bytes:
    return gzip.compress(good, compresslevel=0)


# The manifest: JSON


def text_attack(name: str, says: str, change: Callable[[bytes], bytes]) -> None:
    """Register an attack on the manifest's text; every digest around it is right."""

    def make(good: bytes) -> bytes:
        archive = read_archive(good)
        return resealed(good, change(bytes(archive.blobs[archive.manifest_digest])))

    ATTACKS[name] = Attack(make, says)


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
    text_attack(_name, _says, lambda text, new=_new: text.replace(_DOMAIN, new))

text_attack("huge_manifest", "at most 65536 bytes", lambda text: text + b" " * 65536)
text_attack("non_canonical_manifest", "expected canonical JSON", lambda text: text + b"\n")
text_attack("byte_order_mark", "expected canonical JSON", lambda text: b"\xef\xbb\xbf" + text)
text_attack("utf16_manifest", "expected canonical JSON", lambda t: t.decode().encode("utf-16"))
text_attack("empty_manifest", "expected canonical JSON", lambda text: b"")
text_attack("half_a_manifest", "expected canonical JSON", lambda text: text[: len(text) // 2])
text_attack("list_at_the_top", "expected a JSON object", lambda text: b"[" + text + b"]")
text_attack("only_brackets", "nesting of at most 12", lambda text: b"[" * 65536)
text_attack("brackets_hidden_by_a_quote", "nesting", lambda text: b'"\\"' + b"[" * 60000)


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
    ("another_schema", "schema: expected", _put("schema", value="da3.bundle/2")),
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
    ("mean_of_two", "preprocess.mean: expected", _put("preprocess", "mean", value=[0, 0])),
    ("time_that_never_was", "created: expected", _put("created", value="2026-02-30T00:00:00Z")),
    ("time_of_another_zone", "created: expected", _put("created", value="2026-02-03T00:00:00+01")),
    ("plan_before_its_time", "plans: expected a list of 0", _put("plans", value=[{}])),
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
    slots_attack(_name, _says, lambda slots=_slots: save(slots))

for _name, _says, _raw in (
    ("slots_empty_file", "expected a safetensors file", b""),
    ("slots_pickle", "expected a safetensors file", b"\x80\x04cos\nsystem\n."),
    ("slots_huge_header", "expected a safetensors file", b"\xff" * 16),
    ("slots_header_not_json", "expected a safetensors file", raw_slots(b"nonsense", b"")),
    ("slots_bfloat16_nan", "NaN or infinity",
     raw_slots(one_slot(dtype="BF16", data_offsets=[0, 4]), b"\x00\x3f\xc0\x7f")),
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
    slots_attack(_name, _says, lambda raw=_raw: raw)
