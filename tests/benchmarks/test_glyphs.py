"""Letters of fonts: whole families on one side, and fonts that cannot draw them left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from benchmarks import glyphs
from toolchain.core.errors import DataError

SHIPPED = Path(mpl.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    """Each font that matplotlib brings as a family of its own, and a file that is none."""
    folder = tmp_path / "fonts"
    for path in sorted(SHIPPED.glob("*.ttf"))[:16]:
        (folder / path.stem).mkdir(parents=True)
        shutil.copyfile(path, folder / path.stem / path.name)
    (folder / "broken").mkdir()
    (folder / "broken" / "broken.ttf").write_bytes(b"no font")
    return folder


def test_families_do_not_meet(fonts: Path, tmp_path: Path) -> None:
    """Law: no family has pictures in both parts, and every letter has one of each font."""
    drawn = glyphs.draw(fonts, tmp_path / "out")
    names = {
        part: {path.name for path in (tmp_path / "out" / part).glob("*/*.png")}
        for part in ("train", "test")
    }
    assert names["train"]
    assert names["test"]
    assert not names["train"] & names["test"]
    for part, families in drawn.families.items():
        assert drawn.pictures[part] == families * len(glyphs.LETTERS) == 26 * len(names[part])
        assert len(list((tmp_path / "out" / part).iterdir())) == 26


def test_letters_are_drawn_whole_and_in_the_middle(fonts: Path, tmp_path: Path) -> None:
    glyphs.draw(fonts, tmp_path / "out")
    for path in (tmp_path / "out").glob("*/O/DejaVuSans-0.png"):
        box = Image.open(path).getbbox()
        assert box is not None
        left, top, right, bottom = box
        assert 0 < left < 32 < right < glyphs.SIDE
        assert 0 < top < 32 < bottom < glyphs.SIDE


def test_too_few_families_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected fonts of 8 families at least, got 0"):
        glyphs.draw(tmp_path / "empty", tmp_path / "out")
