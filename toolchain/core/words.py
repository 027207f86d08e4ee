"""The words of manifests: what a name, a digest, a shape or a note looks like, and whole records.

Rules of this file: each rule is said here once, for recipes, checkpoints, bundles, backbones, kits
and engines alike. A record is a :class:`toolchain.core.fields.Section`; a :class:`Document` is a
record that fills a file as canonical JSON. Wrong types, ranges, patterns, unknown and missing keys
are found together and raised as one error. It does not know the records, nor where their bytes come
from.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar, get_args

from toolchain.core.canonical import LIMIT_BYTES, canonical_json, read_document
from toolchain.core.digest import DIGEST_PATTERN
from toolchain.core.errors import BundleError, Da3Error, Fault, first_few
from toolchain.core.fields import (
    ListOf,
    Scalar,
    Section,
    TableOf,
    choice,
    matching,
    read_section,
    text,
    whole,
)

RecordT = TypeVar("RecordT", bound=Section)
DocumentT = TypeVar("DocumentT", bound="Document")
Note = bool | int | float | str | None
Notes = Mapping[str, Note]

# What a board may compute in.
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Integers beyond this are not exact in every JSON reader (RFC 8785, section 3.2.2.3).
EXACT = 2**53 - 1
_SHOWN_FAULTS = 30
_EXPORT_AGAIN = "export it again with this version of the toolchain"


def is_domain_name(value: str) -> bool:
    """Return whether ``value`` can name a domain: letters of any script, digits, ``_ - .``, space.

    It is also a file's stem, so it is in Unicode's NFC form, starts with a letter or digit, does
    not end in a space or dot, and has at most 64 characters.
    """
    # `[^\W_]` is a letter or digit of any script, as `\w` knows all scripts.
    plain = re.fullmatch(r"[^\W_](?:[\w .-]{0,62}[\w-])?", value) is not None
    return plain and unicodedata.is_normalized("NFC", value)


BY = "@"
"""Stands between domain and method in a file's name; no domain has it in its own."""


def is_loaded_name(value: str) -> bool:
    """Return whether a domain can be loaded as ``value``: its name, or ``NAME@METHOD``.

    A bundle is loaded under its file's name, which the export makes so for another method than the
    recipe's.
    """
    domain, sign, method = value.partition(BY)
    return is_domain_name(domain) and (
        not sign or re.fullmatch(r"[a-z0-9_]{1,64}", method) is not None
    )


def _is_note(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 1000 and value.isprintable()
    if isinstance(value, int | float):
        # NaN fails both comparisons.
        return -EXACT <= value <= EXACT
    return value is None


DIGEST = matching(DIGEST_PATTERN, "`sha256:` and 64 lower-case hex digits")
FILE_NAME = matching(r"[a-z0-9][a-z0-9._-]{0,63}")
TENSOR_NAME = matching(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,199}")
WORD = matching(r"[a-z0-9][a-z0-9_-]{0,63}")
IDENTIFIER = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TARGET = matching(r"[a-z0-9][a-z0-9.-]{0,63}")
DOMAIN = text(
    "1 to 64 letters, digits, `_`, `-`, `.` or spaces of any script in Unicode's NFC form, "
    "starting with a letter or digit, not ending in a space or dot",
    is_domain_name,
)
LOADED = replace(
    DOMAIN,
    expected=f"{DOMAIN.expected}; @ and a method may follow",
    accepts=lambda value: isinstance(value, str) and is_loaded_name(value),
)
VERSION = matching(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
AGENT = matching(r"[0-9]{1,5}(\.[0-9]{1,5}){1,2}")
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""RFC 3339 in UTC and whole seconds, as ``strftime`` takes it; :data:`TIME` is its rule."""
TIME = matching(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")
MEDIA_TYPE = matching(r"[a-z]{1,20}/[a-z0-9][a-z0-9.+-]{0,99}")
DTYPE = choice(
    "bool", "uint8", "int8", "int32", "int64", "bfloat16", "float16", "float32", "float64"
)
SHAPE = ListOf(whole(0, 2**31), 0, 8)
NATURAL = whole(0, EXACT)
BOOLEAN = Scalar("true or false", lambda value: isinstance(value, bool))
NOTE = Scalar(
    "null, true, false, a number within 2**53 - 1, or at most 1000 printable characters", _is_note
)
NOTES = TableOf(matching(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,95}"), NOTE, 0, 256)


class Document(Section):
    """A record that fills a file, as canonical JSON of at most ``LIMIT_BYTES``.

    ``FILE`` is what messages call it. Law: ``from_json(record.to_json())`` equals ``record``.
    """

    __slots__ = ()
    FILE: ClassVar[str]
    LIMIT_BYTES: ClassVar[int] = LIMIT_BYTES

    def to_json(self) -> bytes:
        """Return the canonical JSON (RFC 8785)."""
        return canonical_json(to_json(self))

    @classmethod
    def from_json(cls: type[DocumentT], data: bytes) -> DocumentT:
        """Return the record in ``data``; raises BundleError with every fault and its key path."""
        document = read_document(data, cls.FILE, limit_bytes=cls.LIMIT_BYTES)
        return read_record(cls, document, cls.FILE)


def read_record(
    kind: type[RecordT],
    value: object,
    what: str,
    *,
    error: type[Da3Error] = BundleError,
    fix: str = _EXPORT_AGAIN,
) -> RecordT:
    """Return the record of ``kind`` that the JSON value ``value`` holds.

    Raises ``error`` naming every fault with its key path (``files[2].digest``); ``what`` names
    the document.
    """
    faults: list[Fault] = []
    record = read_section(kind, "", value, faults)
    raise_faults(what, faults, error=error, fix=fix)
    assert record is not None  # without faults there is a record
    return record


def raise_faults(
    what: str,
    faults: Iterable[Fault],
    *,
    error: type[Da3Error] = BundleError,
    fix: str = _EXPORT_AGAIN,
) -> None:
    """Raise ``error`` for ``faults``, if there are any; the first thirty are listed."""
    lines = [str(fault) for fault in faults]
    if lines:
        plural = "fault" if len(lines) == 1 else "faults"
        shown = first_few(lines, _SHOWN_FAULTS, "\n  ")
        raise error(f"{what}: {len(lines)} {plural}\n  {shown}", fix=fix)


def to_json(value: Any) -> Any:
    """Return ``value`` (a record, or what a record's fields hold) as plain JSON types."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    return value


def repeated(path: str, names: Iterable[str]) -> Iterator[Fault]:
    """Yield a fault for each of ``names`` that stands there more than once."""
    for name, count in Counter(names).items():
        if count > 1:
            yield Fault(path, f"expected each name once, got {name!r} {count} times")
