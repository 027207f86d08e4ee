"""The text of a unit and its two parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import UsageError
from toolchain.core.units import Unit, is_unit


@pytest.mark.parametrize("words", ["domains/Käfer am Bach", "domains/昆虫", "backbones/resnet20"])
def test_a_text_is_a_unit_and_back(words: str) -> None:
    assert str(Unit.parse(words)) == words


@pytest.mark.parametrize(
    "words",
    [
        *("", "cars", "/", "domains/", "domains/a/b", "domains/..", "domains/a ", "models/x"),
        *("domains/Ka\u0308fer", "backbones/Käfer", "backbones/a b", "domains/a\0", "/domains/a"),
    ],
)
def test_what_is_no_unit_is_refused(words: str) -> None:
    assert not is_unit(words)
    with pytest.raises(UsageError):
        Unit.parse(words)


@given(st.text(max_size=20))
def test_a_unit_is_a_path_of_two_parts(words: str) -> None:
    """Law: whatever is accepted leads nowhere else."""
    if is_unit(f"domains/{words}"):
        assert "/" not in words
        assert words not in (".", "..")
        assert Unit.parse(f"domains/{words}").name == words
