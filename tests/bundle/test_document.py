"""Documents: the limits hold for bytes that were made to be slow."""

from __future__ import annotations

import time

import pytest

from toolchain.bundle.document import read_document
from toolchain.errors import BundleError


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
