"""What form a table has: parts that it states are kept, and what is unclear is refused by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.tables import cells, picture
from toolchain.core.errors import DataError
from toolchain.training.data.forms import first_look, recognised


def write(root: Path, text: str, name: str = "labels.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root


def sheet(root: Path, heads: str, *columns: Sequence[str], name: str = "labels.csv") -> Path:
    """Write a table of the pictures of ``cells``, with the ``columns`` beside their paths."""
    rows = [",".join(row) for row in zip(*columns, strict=True)]
    lines = [f"images/c{i:02d}.png,{row}" for i, row in enumerate(rows)]
    return write(root, "\n".join([f"file,{heads}", *lines]), name)


@pytest.mark.parametrize("head", ["split", "data_split", "Subset", "other"])
def test_parts_without_a_test_are_kept(tmp_path: Path, head: str) -> None:
    sheet(cells(tmp_path), f"{head},label", [*["train"] * 6, *["val"] * 4], "ab" * 5)
    spec, contents = first_look(tmp_path)
    assert spec.columns == ("file", "label", head)
    assert contents.lines()[0].startswith("6 to train, 4 to test (as labels.csv say")


@pytest.mark.parametrize(
    ("head", "parts", "words"),
    [
        (
            "split",
            ["train"] * 8 + ["test", "exam"],
            "line 11: expected train, .*'split', got 'exam",
        ),
        ("subset", ["train"] * 8 + ["test", ""], "line 11: expected train, .* 'subset', got ''"),
        ("other", ["train"] * 8 + ["test", "n/a"], "line 11: expected train, .*'other', got 'n/a"),
        ("fold", list("0123401234"), "line 2: expected train, test or val in .*'fold', got '0'"),
        ("split", ["test"] * 5 + ["val"] * 5, "expected rows to train in the column 'split', got"),
        ("split", ["test"] * 10, "got those of the part test"),
        ("split,subset", ["train,test", "test,train"] * 5, "one column of parts, got 'split' and"),
    ],
)
def test_parts_that_are_unclear_are_refused(
    tmp_path: Path, head: str, parts: list[str], words: str
) -> None:
    sheet(cells(tmp_path), f"{head},label", parts, "ab" * 5)
    with pytest.raises(DataError, match=words):
        recognised(tmp_path)


def test_a_column_of_labels_is_named_by_its_name_or_its_number(tmp_path: Path) -> None:
    sheet(cells(tmp_path), "one,two", "ab" * 5, [*"xxyyx"] * 2)
    assert recognised(tmp_path, "3").columns == recognised(tmp_path, "two").columns
    assert recognised(tmp_path, "2").columns == ("file", "one")
    for label in ("4", "0", "three"):
        with pytest.raises(DataError, match=f"expected a column '{label}', got file, one, two"):
            recognised(tmp_path, label)
    for label in ("1", "file"):
        with pytest.raises(DataError, match="expected a column of labels, got 'file', which names"):
            recognised(tmp_path, label)
    sheet(tmp_path, "3,two", "ab" * 5, [*"xxyyx"] * 2)
    assert recognised(tmp_path, "3").columns == ("file", "3")


@pytest.mark.parametrize(
    ("head", "row", "delimiter"),
    [
        ("file;share", "images/c{:02d}.png;{},5", "semicolon"),
        ("file;a;b;c", "images/c{:02d}.png;{};1,2,5;", "semicolon"),
        ("file,share,more", "images/c{:02d}.png,{},1;2;3;4", "comma"),
        ("file\tshare", "images/c{:02d}.png\t{},25 kg", "tab"),
        ("file share", "images/c{:02d}.png   {},5", "space"),
    ],
)
def test_the_delimiter_is_the_one_by_which_a_column_names_pictures(
    tmp_path: Path, head: str, row: str, delimiter: str
) -> None:
    rows = [row.format(i, i % 2) for i in range(12)]
    write(cells(tmp_path, 12), "\n".join([head, *rows]))
    spec, contents = first_look(tmp_path)
    assert (spec.loader, spec.delimiter) == ("csv", delimiter)
    assert len(contents.counts()) == 2


def test_a_column_of_parts_without_labels_is_not_dropped(tmp_path: Path) -> None:
    sheet(cells(tmp_path), "split", ["train", "test"] * 5, name="meta.csv")
    with pytest.raises(DataError, match=r"meta\.csv: expected a column of labels beside the parts"):
        recognised(tmp_path)


def test_other_columns_are_no_parts(tmp_path: Path) -> None:
    sheet(cells(tmp_path), "part,kind", ["wheel", "door"] * 5, [*"12345", *"67890"])
    assert recognised(tmp_path).columns == ("file", "part")
    sheet(tmp_path, "vehicle,id", ["train", "train", "bus", "train", "bus"] * 2, "abcdefghij")
    assert recognised(tmp_path, "vehicle").columns == ("file", "vehicle")
    sheet(tmp_path, "class,id", ["train", "train", "bus", "train", "bus"] * 2, "abcdefghij")
    assert recognised(tmp_path).columns == ("file", "class")


@pytest.mark.parametrize("head", ["label", "Species", "class name"])
def test_a_column_that_is_called_label_has_any_number_of_values(tmp_path: Path, head: str) -> None:
    sheet(cells(tmp_path), f"camera,{head}", "xy" * 5, "aabcdefghi")
    assert recognised(tmp_path).columns == ("file", head)
    sheet(tmp_path, f"camera,{head},category", "xy" * 5, "aabcdefghi", "abcdefghij")
    with pytest.raises(DataError, match=f"got several: {head} .*; category"):
        recognised(tmp_path)


def test_tables_named_like_parts_are_used_together_or_refused(tmp_path: Path) -> None:
    cells(tmp_path, 12)
    (tmp_path / "labels.csv").unlink()
    sheet(tmp_path, "kind", "abc", name="train.csv")
    rows = [f"images/c{i:02d}.png,{'abc'[i % 3]}" for i in range(3, 12)]
    write(tmp_path, "\n".join(["file,kind", *rows]), "test.csv")
    with pytest.raises(DataError, match=r"train\.csv: expected paths of pictures and their labels"):
        recognised(tmp_path)
    sheet(tmp_path, "label", "aba", name="train.csv")
    write(tmp_path, "\n".join(["file,label", *rows]), "test.csv")
    assert recognised(tmp_path).files == ("train.csv", "test.csv")
    for text in ("file,label\nimages/c03.png,Möwe\n", "Möwe"):
        (tmp_path / "test.csv").write_bytes(text.encode("cp1252"))
        with pytest.raises(DataError, match=r"test\.csv: line [12]: expected UTF-8"):
            recognised(tmp_path)
    (tmp_path / "test.csv").unlink()
    write(tmp_path, "\n".join(["file,label", *rows]), "val.csv")
    assert recognised(tmp_path).files == ("train.csv", "val.csv")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match=r"expected one table, or train and test.*got val\.csv"):
        recognised(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_names_in_the_folders_of_parts_are_asked_for_with_these(
    tmp_path: Path, suffix: str
) -> None:
    names = [f"{'test' if i % 4 == 3 else 'train'}/p{i}.png" for i in range(12)]
    for name in names:
        picture(tmp_path / name)
    rows = [f"p{i}{suffix},{'ab'[i // 6]}" for i in range(12)]
    write(tmp_path, "\n".join(["file,label", *rows]))
    with pytest.raises(DataError, match=f"such as train/p0.png, got 'p0{suffix}'") as caught:
        recognised(tmp_path)
    assert caught.value.fix.startswith("write the folders in front of the names")
    rows = [f"{name},{'ab'[i // 6]}" for i, name in enumerate(names)]
    write(tmp_path, "\n".join(["file,label", *rows]))
    assert (
        first_look(tmp_path)[1].lines()[0].startswith("9 to train, 3 to test (as the folders say")
    )


def test_two_places_of_the_same_names_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "masks" / f"{i}.png")
        picture(tmp_path / "photos" / f"{i}.png")
    write(tmp_path, "file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    with pytest.raises(DataError, match=r"got column 1 as masks/\{\}, column 1 as photos/\{\}"):
        recognised(tmp_path)
    rows = [f"{i},photos/{i}.png,{'ab'[i % 2]}\n" for i in range(4)]
    write(tmp_path, "id,file,label\n" + "".join(rows))
    assert recognised(tmp_path).columns == ("file", "label")


def test_an_unclear_label_is_not_replaced_by_folders(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("left", "right") for i in range(4)]
    for name in names:
        picture(tmp_path / name)
    rows = "".join(f"{name},{'ab'[i % 2]},{'xy'[i // 2 % 2]}\n" for i, name in enumerate(names))
    write(tmp_path, f"file,one,two\n{rows}")
    with pytest.raises(DataError, match=r"several: one \(2 values.*; two \(2 values") as caught:
        recognised(tmp_path)
    assert "--label one" in caught.value.fix
    assert recognised(tmp_path, "one").columns == ("file", "one")


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("", "cp1252", "line 2: expected UTF-8 text, got byte 0xf6"),
        ("", "utf-16", "line 1: expected UTF-8 text, got byte 0xff"),
        ("/home/me/", "utf-8", "expected paths below .*, with '/', got '/home/me/left/0.png'"),
        ("C:\\me\\", "utf-8", "expected paths below .*, with '/', got "),
    ],
)
def test_a_table_of_the_pictures_that_cannot_be_used_is_refused(
    tmp_path: Path, place: str, code: str, words: str
) -> None:
    names = [f"{kind}/{i}.png" for kind in ("left", "right") for i in range(4)]
    for name in names:
        picture(tmp_path / name)
    text = "file,label\n" + "".join(f"{place}{name},Möwe{name[-5]}\n" for name in names)
    (tmp_path / "labels.csv").write_bytes(text.encode(code))
    (tmp_path / "train.dat").write_bytes(bytes(range(255)) * 20)
    with pytest.raises(DataError, match=words):
        recognised(tmp_path)
    (tmp_path / "labels.csv").unlink()
    assert recognised(tmp_path).loader == "folder"


def test_a_table_of_many_figures_costs_little(tmp_path: Path) -> None:
    for i in range(100):
        picture(tmp_path / f"class{i % 50}" / f"{i}.png")
    rows = [",".join(f"{i + column / 7:.6f}" for column in range(1024)) for i in range(100)]
    write(tmp_path, "\n".join([",".join(f"f{column}" for column in range(1024)), *rows]))
    begin = time.process_time()
    assert recognised(tmp_path).loader == "folder"
    assert time.process_time() - begin < 10
