"""One form per value, and limits that hold for bytes that were made to be slow."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toolchain.core.canonical import canonical_json, read_document, rounded
from toolchain.core.errors import BundleError, Da3Error

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
WRITERS: list[dict[str, Any]] = [
    {},
    {"sort_keys": True, "separators": (",", ":")},
    {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False},
]


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.sampled_from(WRITERS))
@example({"a": 1e-7, "b": 9.5e-6, "c": 1e21, "d": -0.0, "e": 1.0}, WRITERS[1])
@example({"a": -0.0}, WRITERS[1])
@example({"a": 10**16}, WRITERS[1])
@example({"a": 2**53}, WRITERS[1])
@example({"\ufb33": 1, "\U0001f600": 2}, WRITERS[2])
def test_what_is_read_is_canonical_and_nothing_else_is(
    value: dict[str, Any], writer: dict[str, Any]
) -> None:
    """Law: bytes are taken exactly if writing their value canonically gives them back."""
    try:
        data = json.dumps(value, **writer).encode()
        canonical = canonical_json(json.loads(data))
        # A large float is written as a whole number, which not every reader takes exactly.
        canonical_json(json.loads(canonical))
    except (Da3Error, UnicodeEncodeError):
        with pytest.raises(BundleError):
            read_document(json.dumps(value, **WRITERS[0]).encode(), "x")
        return
    assert read_document(canonical, "x") == json.loads(canonical)
    if data != canonical:
        with pytest.raises(BundleError, match="canonical JSON"):
            read_document(data, "x")


@pytest.mark.parametrize(
    "data",
    [
        b'{"' + b'\\"' * 32_000,
        b'{"' + b'\\"' * 32_000 + b"\\",
        b'{"' + b"x" * 65_000,
        b'"' * 65_001,
    ],
    ids=["escaped quotes", "escape at the end", "no end", "quotes"],
)
def test_an_unterminated_string_takes_no_quadratic_time(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(BundleError, match="expected canonical JSON"):
        read_document(data, "x")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("end", [b"", b'"', b'"\\', b'"\\"'])
def test_nesting_before_an_unterminated_string_is_counted(end: bytes) -> None:
    with pytest.raises(BundleError, match="at most 12 levels, got 30000"):
        read_document(b"[" * 30_000 + end, "x")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_idempotent_and_close(value: Any) -> None:
    """Law: rounded(rounded(v)) is rounded(v), within six significant digits of v."""
    once = rounded(value)
    assert rounded(once) == once
    assert math.isclose(once, value, rel_tol=1e-5) or abs(value) < 1e-300


@given(st.floats(0, 1))
def test_a_rate_is_resolved_only_when_it_is_exact(rate: Any) -> None:
    """A gate that opened once in a million is not always closed: rounding never makes it so."""
    assert (rounded(rate) == 0.0) == (rate == 0.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_canonical_json_means_the_same_and_is_a_fixed_point(value: object) -> None:
    """Law: parsing gives the value back, and its canonical form is the same bytes."""
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_of_the_specification() -> None:
    """RFC 8785, section 3.2.3: keys in the order of their UTF-16 code units."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    got = list(json.loads(canonical_json(dict.fromkeys(keys, 0))))
    assert got == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", {1, 2}, np.float32(1), b"x"]
)
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(Da3Error, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize("inside", [b"", b"[]" + b",{}" * 100_000, b'"["'])
@pytest.mark.parametrize("depth", [11, 12, 13, 200, 100_000])
def test_depth_is_counted_whatever_stands_inside(depth: int, inside: bytes) -> None:
    deepest = depth + inside.startswith(b"[]")
    text = b'{"a":' + b"[" * (depth - 1) + inside + b"]" * (depth - 1) + b"}"
    if deepest <= 12:
        assert read_document(text, "x")
    else:
        with pytest.raises(BundleError, match=f"at most 12 levels, got {deepest}"):
            read_document(text, "x")
