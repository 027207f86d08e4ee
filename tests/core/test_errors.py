"""Words that errors share."""

from __future__ import annotations

from toolchain.core.errors import first_few


def test_the_first_few_are_named_and_the_rest_is_counted() -> None:
    assert first_few([], 2) == ""
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c"], 2) == "a, b, and 1 more"
    assert first_few(["a", "b", "c"], 1, "\n  ") == "a\n  and 2 more"
