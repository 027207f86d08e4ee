"""What form data have: each is recognised, and what can be read in two ways is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tables import (
    FILES,
    NAMES,
    cells,
    fashion,
    own,
    picture,
    recipe_of,
    stack,
    write_idx,
)
from toolchain.core.errors import DataError, UsageError
from toolchain.training import data
from toolchain.training.data import idx
from toolchain.training.data.forms import first_look, recognised


def write(root: Path, text: str, name: str = "labels.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root


def test_folders_of_classes(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        picture(tmp_path / name)
    write(tmp_path, "These are pictures, of birds\nand of others, too\n", "README.txt")
    spec, contents = first_look(tmp_path)
    assert (spec.loader, spec.files, spec.labels) == ("folder", None, None)
    assert contents.lines()[0].startswith("2 to train, 2 to test")


@pytest.mark.parametrize("place", ["", "labels.csv"])
def test_a_table_beside_its_pictures(tmp_path: Path, place: str) -> None:
    spec, contents = first_look(cells(tmp_path) / place)
    assert (spec.loader, spec.root) == ("csv", str(tmp_path))
    assert (spec.files, spec.columns) == (("labels.csv",), ("file", "label"))
    assert (spec.delimiter, spec.path, spec.labels) == ("comma", None, None)
    assert sum(map(int, (count["train"] for count in contents.counts()))) == 8


def test_a_table_of_numbers_between_spaces_without_names(tmp_path: Path) -> None:
    """The form of the solar cells of elpv: a column of figures, and one of the kind of module."""
    cells(tmp_path, 12)
    rows = [f"images/c{i:02d}.png   {(0.0, 0.5, 1.0)[i % 3]}  {'mp'[i // 6]}ono" for i in range(12)]
    write(tmp_path, "\n".join(rows))
    with pytest.raises(DataError, match=r"2 \(3 values, such as 0.0, .*; 3 \(2 values") as caught:
        recognised(tmp_path)
    assert caught.value.fix.startswith("name it: --label 2; ")
    spec, _ = first_look(tmp_path, "2")
    assert (spec.columns, spec.delimiter) == ((1, 2), "space")
    assert spec.labels == spec.classes == ("0.0", "0.5", "1.0")
    assert first_look(tmp_path, "3")[0].labels is None


def test_a_first_row_whose_picture_is_missing_is_no_line_of_names(tmp_path: Path) -> None:
    cells(tmp_path, 6, header="images/c77.png,intact")
    assert recognised(tmp_path).columns == (1, 2)
    with pytest.raises(DataError, match=r"labels\.csv line 1: images/c77\.png: no such picture"):
        first_look(tmp_path)


def test_names_without_folder_and_suffix(tmp_path: Path) -> None:
    cells(tmp_path)
    picture(tmp_path / "test" / "x.png")
    write(tmp_path, "id;breed;age\n" + "".join(f"c{i:02d};{'ab'[i % 2]};{i}\n" for i in range(10)))
    spec, contents = first_look(tmp_path)
    assert (spec.delimiter, spec.path) == ("semicolon", "images/{}.png")
    assert spec.columns == ("id", "breed")
    assert "left out: 1 pictures that no row names: test/x.png" in contents.lines()


def test_a_column_of_parts(tmp_path: Path) -> None:
    cells(tmp_path)
    rows = [f"images/c{i:02d}.png,{i % 2},{('train', 'test')[i > 6]}" for i in range(10)]
    write(tmp_path, "\n".join(["name,target,split", *rows]))
    spec, contents = first_look(tmp_path)
    assert spec.columns == ("name", "target", "split")
    assert contents.lines()[0].startswith("7 to train, 3 to test (as labels.csv say")


def test_a_table_for_each_part(tmp_path: Path) -> None:
    head, *rows = (cells(tmp_path, 20) / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").unlink()
    write(tmp_path, "\n".join([head, *rows[:14]]), "train.csv")
    write(tmp_path, "\n".join([head, *rows[14:]]), "own_test.csv")
    spec, _ = first_look(tmp_path)
    assert spec.files == ("train.csv", "own_test.csv")
    write(tmp_path, "\n".join([head, *rows[:4]]), "more.csv")
    with pytest.raises(DataError, match="expected one table, or train and test"):
        recognised(tmp_path)
    assert recognised(tmp_path / "train.csv").files == ("train.csv",)


def test_a_table_that_says_what_the_folders_say_changes_nothing(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(4)]
    for name in names:
        picture(tmp_path / name)
    write(tmp_path, "file,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    assert recognised(tmp_path).loader == "folder"
    assert recognised(tmp_path / "labels.csv").loader == "csv"
    write(tmp_path, "file,label\n" + "".join(f"{name},{name[2]}\n" for name in names))
    assert recognised(tmp_path).loader == "csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "expected a column of paths of pictures below"),
        ("file,label,label\nimages/c00.png,a,b\nimages/c01.png,b,a\n", "a name for each column"),
        ("file,one,two\nimages/c00.png,a,b\nimages/c01.png,b,a\n" * 1, "of paths of pictures"),
    ],
)
def test_a_table_without_paths_or_labels(tmp_path: Path, text: str, words: str) -> None:
    write(cells(tmp_path), text)
    with pytest.raises(DataError, match=words):
        recognised(tmp_path / "labels.csv")


def test_a_table_one_folder_down_is_found(tmp_path: Path) -> None:
    cells(tmp_path / "photos")
    for place in ("photos/images/labels.csv", "photos/more/labels.csv"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / "labels.csv").rename(tmp_path / place)
        spec, contents = first_look(tmp_path / "photos")
        assert spec.files == (place.removeprefix("photos/"),)
        assert contents.lines()[0].startswith("8 to train, 2 to test (0.2 of each class")
        (tmp_path / place).rename(tmp_path / "photos" / "labels.csv")
    spec, contents = first_look(tmp_path)
    assert (spec.files, spec.path) == (("photos/labels.csv",), "photos/{}")
    assert len(contents.counts()) == 2
    (tmp_path / "photos" / "other.csv").write_text((tmp_path / "photos/labels.csv").read_text())
    with pytest.raises(
        DataError, match=r"expected one table, got photos/labels\.csv, photos/other"
    ):
        recognised(tmp_path)
    (tmp_path / "photos" / "other.csv").unlink()
    table = tmp_path / "photos" / "labels.csv"
    rows = [f"images/c{i:02d}.png,{i % 2},{i // 5}" for i in range(10)]
    table.write_text("\n".join(["file,one,two", *rows]))
    with pytest.raises(DataError, match=r"photos/labels\.csv: expected one column of labels"):
        recognised(tmp_path)
    assert recognised(tmp_path, "two").columns == ("file", "two")


def test_a_table_of_one_class_makes_no_labels(tmp_path: Path) -> None:
    for name in [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(6)]:
        picture(tmp_path / name)
    for i in range(6):
        (tmp_path / "b" / f"{i}.txt").write_text(f"{i}.png,{i % 2}\n")
    write(
        tmp_path, "file,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(6)), "a/labels.csv"
    )
    assert recognised(tmp_path).loader == "folder"
    rows = "".join(f"{kind}/{i}.png,{i % 2}\n" for kind in "ab" for i in range(6))
    write(tmp_path, "file,label\n" + rows, "a/labels.csv")
    assert recognised(tmp_path).files == ("a/labels.csv",)
    write(tmp_path, "file,label\n" + "".join(f"{k}/{i}.png,{k}\n" for k in "ab" for i in range(6)))
    assert recognised(tmp_path).loader == "csv"


def test_a_label_that_is_no_column_or_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a column 'colour', got file, label"):
        recognised(cells(tmp_path / "a"), "colour")
    with pytest.raises(UsageError, match="expected a table for the column 'label', got none"):
        recognised(fashion(tmp_path / "b"), "label")


@pytest.mark.parametrize("place", ["", FILES[1]])
def test_idx_files(tmp_path: Path, place: str) -> None:
    spec, contents = first_look(fashion(tmp_path, classes=3) / place)
    assert (spec.loader, spec.files) == ("idx", FILES)
    assert spec.labels == spec.classes == ("0", "1", "2")
    loaded = data.load(recipe_of(spec))
    assert loaded.notes[: len(contents.lines())] == tuple(contents.lines())


def test_idx_files_of_floats_have_a_fix_that_works(tmp_path: Path) -> None:
    for number, name in enumerate(FILES):
        values = stack(12)[number % 2]
        write_idx(tmp_path / name, values if number % 2 else values.astype(np.float32) / 255)
    with pytest.raises(DataError, match="expected uint8, got >f4") as caught:
        first_look(tmp_path)
    assert "data.white" not in caught.value.fix
    assert "numpy.savez('own.npz', x_train=..., y_train=..." in caught.value.fix
    arrays: dict[str, Any] = {
        name: idx.read_array(tmp_path / file) for name, file in zip(NAMES, FILES, strict=True)
    }
    np.savez(tmp_path / "own.npz", **arrays)
    spec, contents = first_look(tmp_path / "own.npz")
    assert (spec.loader, spec.white) == ("npz", 1.0)
    assert contents.lines()[0].startswith("12 to train, 12 to test")


def test_copies_of_pictures_in_arrays_are_counted(tmp_path: Path) -> None:
    pictures, labels = stack(6)
    write_idx(fashion(tmp_path) / FILES[0], np.concatenate([pictures, pictures]))
    lines = first_look(tmp_path)[1].lines()
    assert "6 pictures are copies of others, byte for byte" in lines
    pictures, labels = stack(4)
    write_idx(tmp_path / FILES[2], pictures)
    lines = first_look(tmp_path)[1].lines()
    assert any(line.startswith("4 pictures of the test are in another part") for line in lines)
    write_idx(tmp_path / FILES[3], 1 - labels)
    assert "12 pictures are in several classes: at most one of them is right" in (
        first_look(tmp_path)[1].lines()
    )


def test_an_archive(tmp_path: Path) -> None:
    spec, contents = first_look(own(tmp_path))
    assert (spec.loader, spec.files, spec.columns) == ("npz", ("own.npz",), NAMES)
    assert (spec.white, spec.classes) == (None, ("0", "1"))
    assert contents.document()["test"] == 4
    picture(tmp_path / "a" / "1.png")
    assert recognised(tmp_path).loader == "folder"
    assert recognised(tmp_path / "own.npz") == dataclasses.replace(spec, labels=None, classes=None)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("Y", "X"), ("X", "Y")),
        (("images", "labels", "ids"), ("images", "labels")),
        (("y_val", "x_val", "x_train", "y_train"), ("x_train", "y_train", "x_val", "y_val")),
        (
            [
                f"{part}_{what}"
                for part in ("train", "val", "test")
                for what in ("images", "labels")
            ],
            [
                f"{part}_{what}"
                for part in ("train", "test", "val")
                for what in ("images", "labels")
            ],
        ),
    ],
)
def test_usual_names_of_arrays(tmp_path: Path, names: list[str], columns: list[str]) -> None:
    pictures, labels = stack(4)
    picks: dict[str, Any] = {
        name: labels if name.lower()[0] == "y" or "lab" in name else pictures for name in names
    }
    np.savez(tmp_path / "a.npz", **picks)
    assert recognised(tmp_path).columns == tuple(columns)


@pytest.mark.parametrize(("scale", "white"), [(1 / 255, 1.0), (1.0, 255.0)])
def test_what_is_white_in_floats_is_stated(tmp_path: Path, scale: float, white: float) -> None:
    floats = stack(8)[0].astype(np.float32) * np.float32(scale)
    spec, contents = first_look(own(tmp_path, x_train=floats, x_test=floats[:4]))
    assert spec.white == white
    assert f"{white:g} is white in them, 0 black" in contents.lines()


def test_normalised_pictures_and_unknown_names_are_refused(tmp_path: Path) -> None:
    own(tmp_path, x_train=stack(8)[0] / 128 - 1)
    with pytest.raises(DataError, match=r"got parts with values from -1 to"):
        recognised(tmp_path)
    np.savez(tmp_path / "own.npz", a=stack(4)[0], b=stack(4)[1])
    with pytest.raises(DataError, match=r"expected arrays such as x_train.* got 'a', 'b'"):
        recognised(tmp_path)
    np.savez(tmp_path / "other.npz", x=stack(4)[0], y=stack(4)[1])
    with pytest.raises(DataError, match=r"expected one archive, got other.npz, own.npz"):
        recognised(tmp_path)
    assert recognised(tmp_path / "other.npz").columns == ("x", "y")


@pytest.mark.parametrize(
    ("train", "test", "white"),
    [(1 / 255, 1 / 255, 1.0), (1.0, 1.0, 255.0), (1 / 255, 1.0, None), (16 / 255, 16 / 255, None)],
)
def test_parts_that_differ_in_white_or_have_another_one_are_refused(
    tmp_path: Path, train: float, test: float, white: float | None
) -> None:
    """A guess for both would turn the pictures of one black."""
    levels = np.linspace(0, 255, 8 * 36).reshape(8, 6, 6)
    labels = np.arange(8) % 2
    np.savez(
        tmp_path / "own.npz",
        x_train=levels * train,
        y_train=labels,
        x_test=levels * test,
        y_test=labels,
    )
    if white is not None:
        assert recognised(tmp_path).white == white
        return
    with pytest.raises(DataError, match=r"from 0 to 1, or from 0 to 255, got parts"):
        recognised(tmp_path)


def test_an_array_of_objects_beside_the_pictures_does_no_harm(tmp_path: Path) -> None:
    own(tmp_path, names=np.array(["a", None], dtype=object))
    assert "x_train" in (recognised(tmp_path).columns or ())


def test_another_file_and_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected a folder of pictures, a table"):
        recognised(tmp_path / "a.png")
    with pytest.raises(DataError, match="no such folder"):
        recognised(tmp_path / "none")
