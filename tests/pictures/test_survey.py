"""A survey: every picture once, every fault at once, in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.permissions import locked
from toolchain.core.errors import DataError
from toolchain.pictures.survey import AHEAD, survey


def pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (10 + i, 50 - i)).save(path)
    return paths


def test_all_damaged_pictures_are_told_at_once_in_order(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 3 * AHEAD)
    bad = [1, 2, AHEAD, 3 * AHEAD - 1]
    for place in bad:
        paths[place].write_bytes(paths[place].read_bytes()[:40])
    paths[5].unlink()
    answer = survey(paths, tmp_path)
    assert [fault.path for fault in answer.faults] == [f"{i:03d}.png" for i in sorted([*bad, 5])]
    assert answer.whole == len(paths) - 5
    assert answer.width == (10, 10 + len(paths) - 2)
    with pytest.raises(DataError, match="5 faults") as caught:
        answer.raise_faults("toys")
    assert caught.value.faults == answer.faults


def test_a_picture_that_may_not_be_read_is_one_of_them(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 3)
    with locked(paths[1]):
        faults = survey(paths, tmp_path).faults
    assert [(f.path, f.message) for f in faults] == [
        ("001.png", "cannot be read: Permission denied")
    ]


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    survey(pictures(tmp_path, 3), tmp_path, lambda done, all_: calls.append((done, all_)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_nothing_is_nothing(tmp_path: Path) -> None:
    answer = survey([], tmp_path)
    assert (answer.whole, answer.width, answer.faults) == (0, (0, 0), ())
    assert (answer.several, answer.such_as) == (0, ())
