"""JSON in one form: a value has one sequence of bytes, and bytes in another form are refused.

Rules of this file: pure functions of bytes and values; it opens no file. A document counts only if
it is the RFC 8785 form of its value. So two different files never mean the same, and everything
that JSON parsers disagree about (duplicate keys, NaN, ``1.0``, escapes, white space, byte order
marks) is an error. What the values mean is decided in :mod:`toolchain.core.words`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn

from toolchain.core.errors import BundleError, Da3Error

# More than the largest document that any schema of ours allows (tests/bundle/test_limits.py).
LIMIT_BYTES = 16 << 20
LIMIT_DEPTH = 12

# An unterminated string reaches to the end: a match that never fails never backtracks.
_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*"?', re.DOTALL)
_SPACE = re.compile(rb"\s")
_PAIR = b"[]"
_NO_BRACKETS = bytes(set(range(256)) - {*b"[]{}"})
_AS_LISTS = bytes.maketrans(b"{}", _PAIR)
# Doubles hold every integer of this many digits exactly (RFC 8785, appendix B).
_EXACT_DIGITS = 15
_REMAKE = "take the file from its source again; edit nothing by hand"


def canonical_json(value: Any) -> bytes:
    """``value`` as canonical JSON (RFC 8785): one value, one sequence of bytes.

    Raises Da3Error for what JSON cannot carry exactly: NaN and infinities, integers beyond
    2**53 - 1, keys that are not strings, lone surrogates, other types.
    """
    import rfc8785  # here, so that a file that only knows the words loads nothing

    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as err:
        raise Da3Error(
            f"expected a value that JSON can carry exactly, got one that it cannot: {err}",
            fix="use finite numbers, integers within 2**53 - 1, text, lists and string keys",
        ) from err


def rounded(value: float, digits: int = 6) -> float:
    """Return ``value`` with ``digits`` significant digits, so that machines agree on its text."""
    return float(f"{value:.{digits}g}")


def parse_json(
    data: bytes | str, *, whole: Callable[[str], Any] = int, real: Callable[[str], Any] = float
) -> Any:
    """Return the value of a JSON text in any form, UTF-8 if it is bytes.

    ``whole`` and ``real`` make the values of numbers without and with a fraction or exponent.
    Raises ValueError for what is not JSON, a key that stands twice in one object, NaN and
    infinities, and for nesting that is too deep for the parser.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_table,
            parse_constant=_no_constant,
            parse_int=whole,
            parse_float=real,
        )
    except RecursionError as err:
        raise ValueError("a deep nesting") from err


def read_document(data: bytes, what: str, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Return the JSON object that ``data`` holds in canonical form (RFC 8785).

    ``what`` names the document in messages. Raises BundleError for more than ``limit_bytes``,
    nesting deeper than 12, text that is not UTF-8 or not JSON, duplicate keys, NaN and infinities,
    a value other than an object, and any form but the canonical one.
    """
    if len(data) > limit_bytes:
        _fail(f"{what}: expected at most {limit_bytes} bytes, got {len(data)}")
    outside = _STRING.sub(b"", data)
    # The depth is counted before parsing: nested text can exhaust a parser's stack.
    if (depth := _depth(outside)) > LIMIT_DEPTH:
        _fail(f"{what}: expected nesting of at most {LIMIT_DEPTH} levels, got {depth}")
    # Without escapes and white space only keys and numbers can break the form.
    form = _Form(canonical=data.isascii() and b"\\" not in data and not _SPACE.search(outside))
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=form.table,
            parse_float=form.real,
            parse_int=form.whole,
            parse_constant=_no_constant,
        )
        canonical = data if form.canonical else canonical_json(value)
    except (ValueError, Da3Error) as err:
        reason = err.message if isinstance(err, Da3Error) else str(err)
        raise BundleError(f"{what}: expected canonical JSON, got {reason}", fix=_REMAKE) from err
    if not isinstance(value, dict):
        _fail(f"{what}: expected a JSON object, got {type(value).__name__}")
    if canonical != data:
        _fail(f"{what}: expected canonical JSON (RFC 8785), {_first_difference(canonical, data)}")
    return value


@dataclass(slots=True)
class _Form:
    """Watches a parser at work: ``canonical`` stays true while every part is in canonical form.

    To write a manifest again takes longer than all other steps of reading it. So the reader writes
    it again only where this watch cannot show that the same bytes would come out.
    """

    canonical: bool

    def table(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Take an object; its keys must be in order (RFC 8785, section 3.2.3)."""
        table = _unique_table(pairs)
        keys = list(table)
        # Python sorts by code point, RFC 8785 by UTF-16 unit; in ASCII the two are one order.
        self.canonical = self.canonical and keys == sorted(keys)
        return table

    def real(self, text: str) -> float:
        """Take a number with a fraction or exponent (RFC 8785, section 3.2.2.3)."""
        value = float(text)
        self.canonical = self.canonical and canonical_json(value) == text.encode()
        return value

    def whole(self, text: str) -> int:
        """Take an integer; those beyond 15 digits may not be exact (RFC 8785, appendix B)."""
        self.canonical = self.canonical and text != "-0" and len(text) <= _EXACT_DIGITS
        return int(text)


def _fail(message: str) -> NoReturn:
    raise BundleError(message, fix=_REMAKE)


def _depth(outside: bytes) -> int:
    """Return the deepest nesting of brackets; ``outside`` is the text without its strings."""
    brackets = outside.translate(_AS_LISTS, _NO_BRACKETS)
    # Pair by pair from the inside out: megabytes of brackets go in a moment.
    left = brackets
    for rounds in range(LIMIT_DEPTH + 1):
        if not left:
            return rounds
        left = left.replace(_PAIR, b"")
    # Deeper, or no JSON: counted one by one.
    return max(accumulate(1 if bracket == _PAIR[0] else -1 for bracket in brackets))


def _unique_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return ``pairs`` as a dict; raises ValueError for a key that stands there twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r} twice")
        table[key] = value
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _first_difference(canonical: bytes, data: bytes) -> str:
    """Return words that say from which byte on ``data`` leaves the canonical form."""
    same = next(
        (at for at, (a, b) in enumerate(zip(canonical, data, strict=False)) if a != b),
        min(len(canonical), len(data)),
    )
    return f"got another form from byte {same} on: {data[same : same + 24]!r}"
