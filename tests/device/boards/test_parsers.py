"""The table of parsers: every version has a row, and what is no version is refused."""

from __future__ import annotations

import pytest

from toolchain.core.errors import ModelRefusedError
from toolchain.device.boards.parsers import PARSERS, RTX, parser, version_of


def test_generations_are_in_order_and_every_version_has_one() -> None:
    assert [p.since for p in PARSERS] == sorted(p.since for p in PARSERS)
    assert [parser(v).opset for v in ("7.0", "8.4", "8.6", "9.9", "10.14", "10.99", "12.0")] == [
        13, 13, 17, 17, 20, 24, 24,
    ]  # fmt: skip


@pytest.mark.parametrize("hostile", ["", "8", "eight.two", "8.²", "-8.2", "8,2"])
def test_what_is_no_version_is_refused(hostile: str) -> None:
    with pytest.raises(ModelRefusedError, match="version"):
        version_of(hostile)


def test_rtx_counts_anew() -> None:
    assert version_of("1.7.1") == version_of("rtx1.7") == (11, 0)
    assert parser("1.7.1") is parser("rtx1.7") is RTX
