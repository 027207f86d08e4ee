"""Documents: bytes that are JSON in exactly one way, read with limits.

Rules of this file: pure functions of bytes, nothing is opened here. A document is accepted only if
it is the RFC 8785 form of what it says, so two different files never mean the same, and whatever
JSON parsers disagree about (duplicate keys, NaN, ``1.0``, escapes, white space, byte order marks)
is an error. What the values mean is decided in :mod:`toolchain.bundle.fields`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from toolchain.core.digest import canonical_json
from toolchain.core.errors import BundleError, Da3Error

LIMIT_BYTES = 64 * 1024
LIMIT_DEPTH = 12

# An unterminated string reaches to the end: a match that never fails never backtracks.
_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*"?', re.DOTALL)
_SPACE = re.compile(rb"\s")
_BRACKET = re.compile(rb"[\[\]{}]")
_REMAKE = "take the file from its source again; edit nothing by hand"


def read_document(data: bytes, what: str, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Return the JSON object that ``data`` holds in canonical form (RFC 8785).

    ``what`` names the document in messages. Raises BundleError for more than ``limit_bytes``,
    nesting deeper than 12, text that is not UTF-8 or not JSON, duplicate keys, NaN and infinities,
    a value other than an object, and any form but the canonical one.
    """
    if len(data) > limit_bytes:
        _fail(f"{what}: expected at most {limit_bytes} bytes, got {len(data)}")
    outside = _STRING.sub(b"", data)
    if (depth := _depth(outside)) > LIMIT_DEPTH:
        _fail(f"{what}: expected nesting of at most {LIMIT_DEPTH} levels, got {depth}")
    # What holds no escape and no white space can only be off in its keys and numbers.
    seen = _Seen(plain=data.isascii() and b"\\" not in data and not _SPACE.search(outside))
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=seen.table,
            parse_float=seen.real,
            parse_int=seen.whole,
            parse_constant=_no_constant,
        )
        canonical = data if seen.plain else canonical_json(value)
    except (ValueError, Da3Error) as err:
        reason = err.message if isinstance(err, Da3Error) else str(err)
        raise BundleError(f"{what}: expected canonical JSON, got {reason}", fix=_REMAKE) from err
    if not isinstance(value, dict):
        _fail(f"{what}: expected a JSON object, got {type(value).__name__}")
    if canonical != data:
        _fail(f"{what}: expected canonical JSON (RFC 8785), {_difference(canonical, data)}")
    return value


@dataclass(slots=True)
class _Seen:
    """What a parser met: ``plain`` stays true while each part is canonical by itself.

    Writing a manifest anew takes longer than all the rest of reading it, so it is done only where
    this does not show that the same bytes would come out.
    """

    plain: bool

    def table(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Take an object; its keys must be in order (RFC 8785, section 3.2.3)."""
        table = unique_table(pairs)
        keys = list(table)
        self.plain = self.plain and keys == sorted(keys)
        return table

    def real(self, text: str) -> float:
        """Take a number with a fraction or exponent (RFC 8785, section 3.2.2.3)."""
        value = float(text)
        self.plain = self.plain and canonical_json(value) == text.encode()
        return value

    def whole(self, text: str) -> int:
        """Take an integer; those beyond 15 digits may not be exact (RFC 8785, appendix B)."""
        self.plain = self.plain and text != "-0" and len(text) <= 15
        return int(text)


def _fail(message: str) -> NoReturn:
    raise BundleError(message, fix=_REMAKE)


def _depth(outside: bytes) -> int:
    """Deepest nesting outside strings, found before a parser can be driven into recursion."""
    deepest = level = 0
    for bracket in _BRACKET.findall(outside):
        level += 1 if bracket in b"[{" else -1
        deepest = max(deepest, level)
    return deepest


def unique_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return ``pairs`` as a dict; raises ValueError for a key that stands there twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r} twice")
        table[key] = value
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _difference(canonical: bytes, data: bytes) -> str:
    """Where the two forms part, for the reader of a message."""
    same = next(
        (at for at, (a, b) in enumerate(zip(canonical, data, strict=False)) if a != b),
        min(len(canonical), len(data)),
    )
    return f"got another form from byte {same} on: {data[same : same + 24]!r}"
