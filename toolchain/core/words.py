"""Rules: the vocabulary of the manifests, and records read from and written to JSON.

Rules of this file: a record is a :class:`toolchain.core.fields.Section`; what a digest, a name, a
shape or a note may look like is said here once, for bundle and backbone alike. Types, ranges,
patterns, unknown and missing keys are found together and raised as one BundleError. It does not
know the records, nor where their bytes come from.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from toolchain.core.digest import DIGEST_PATTERN
from toolchain.core.errors import BundleError, Fault
from toolchain.core.fields import (
    ListOf,
    Rule,
    Scalar,
    Section,
    choice,
    read_section,
    show,
    text,
    whole,
)

RecordT = TypeVar("RecordT", bound=Section)

# What a board may compute in.
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Integers beyond this are not exact in every JSON reader (RFC 8785, section 3.2.2.3).
EXACT = 2**53 - 1
_SHOWN_FAULTS = 30


def matching(pattern: str, says: str = "") -> Scalar:
    """Return the rule for a string that matches ``pattern`` as a whole."""
    compiled = re.compile(pattern)
    return text(says or f"`{pattern}`", lambda value: compiled.fullmatch(value) is not None)


def _is_note(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 1000 and value.isprintable()
    if isinstance(value, int | float):
        # NaN fails both comparisons.
        return -EXACT <= value <= EXACT
    return value is None


def _is_domain(value: str) -> bool:
    plain = re.fullmatch(r"[^\W_](?:[\w .-]{0,62}[\w-])?", value) is not None
    return plain and unicodedata.is_normalized("NFC", value)


@dataclasses.dataclass(frozen=True, slots=True)
class TableOf:
    """A rule for a table of ``low`` to ``high`` entries; becomes a read-only mapping."""

    name: Scalar
    item: Rule
    low: int
    high: int

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the mapping, or None with one fault per bad key or item (``path.key``)."""
        if not isinstance(value, Mapping) or not self.low <= len(value) <= self.high:
            got = f"{len(value)} entries" if isinstance(value, Mapping) else show(value)
            faults.append(
                Fault(path, f"expected a table of {self.low} to {self.high} entries, got {got}")
            )
            return None
        for name in value:
            self.name.read(f"{path} (key)", name, faults)
        return MappingProxyType(
            {name: self.item.read(f"{path}.{name:.60}", one, faults) for name, one in value.items()}
        )


DIGEST = matching(DIGEST_PATTERN, "`sha256:` and 64 lower-case hex digits")
FILE_NAME = matching(r"[a-z0-9][a-z0-9._-]{0,63}")
TENSOR_NAME = matching(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,199}")
WORD = matching(r"[a-z0-9][a-z0-9_-]{0,63}")
IDENTIFIER = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DOMAIN = text(
    "1 to 64 letters, digits, `_`, `-`, `.` or spaces of any script in Unicode's NFC form, "
    "starting with a letter or digit, not ending in a space or dot",
    _is_domain,
)
VERSION = matching(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
AGENT = matching(r"[0-9]{1,5}(\.[0-9]{1,5}){1,2}")
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


def read_record(kind: type[RecordT], value: object, what: str) -> RecordT:
    """Return the record of ``kind`` that the JSON value ``value`` holds.

    Raises BundleError naming every fault with its key path (``files[2].digest``); ``what`` names
    the document.
    """
    faults: list[Fault] = []
    record = read_section(kind, "", value, faults)
    raise_faults(what, faults)
    assert record is not None  # without faults there is a record
    return record


def raise_faults(what: str, faults: Iterable[Fault]) -> None:
    """Raise BundleError for ``faults``, if there are any; the first thirty are listed."""
    found = list(faults)
    if not found:
        return
    lines = "".join(f"\n  {fault}" for fault in found[:_SHOWN_FAULTS])
    more = f"\n  and {len(found) - _SHOWN_FAULTS} more" if len(found) > _SHOWN_FAULTS else ""
    plural = "fault" if len(found) == 1 else "faults"
    raise BundleError(
        f"{what}: {len(found)} {plural}{lines}{more}",
        fix="export it again with this version of the toolchain",
    )


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
