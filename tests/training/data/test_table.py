"""Tables of pictures: what a row means, what is left out, and every fault with its line."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tables import cells, picture, recipe_of, spec
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError, StorageError
from toolchain.recipe import Listing
from toolchain.recipe.examined import examine
from toolchain.recipe.spec import DELIMITERS, DataSpec
from toolchain.training import data
from toolchain.training.data import table

FILE_LABEL = spec("csv", files=("labels.csv",), columns=("file", "label"))
NUMBERED = dataclasses.replace(FILE_LABEL, columns=(1, 2))


def listed(root: Path, one: DataSpec = FILE_LABEL) -> Listing:
    return table.listed(one, root)


def names(listing: Listing, part: str = "train") -> list[str]:
    return [path.name for path, _ in getattr(listing, part)]


def faults(root: Path, one: DataSpec = FILE_LABEL) -> list[str]:
    return [f"{fault.path}: {fault.message}" for fault in listed(root, one).faults]


def write(root: Path, text: str, name: str = "labels.csv") -> None:
    (root / name).write_text(text, encoding="utf-8")


def test_rows_become_pictures_of_two_parts(tmp_path: Path) -> None:
    dataset = data.load(recipe_of(FILE_LABEL), root=cells(tmp_path))
    assert dataset.classes == ("broken", "intact")
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    for split in (dataset.train, dataset.test):
        shown, labels = split.batch(range(len(split)))
        # Even pictures are intact, and a picture's shade is 20 times its number.
        assert (labels == 1 - shown[:, 0, 0, 0] // 20 % 2).all()
    assert dataset.notes[0] == (
        "8 to train, 2 to test (0.2 of each class to test, chosen by data.seed 1), 2 classes"
    )


def test_the_share_and_the_seed_choose_the_test(tmp_path: Path) -> None:
    cells(tmp_path, 40)
    half = dataclasses.replace(FILE_LABEL, test_share=0.5)
    other = dataclasses.replace(half, seed=2)
    assert len(listed(tmp_path, half).test) == 20
    assert listed(tmp_path, half) == listed(tmp_path, half)
    assert set(listed(tmp_path, half).test) != set(listed(tmp_path, other).test)


def test_classes_that_are_merged_move_nothing_between_the_parts(tmp_path: Path) -> None:
    """Two classes and four of the same pictures have one test, so that figures compare."""
    cells(tmp_path, 24)
    rows = [f"images/c{i:02d}.png,{i % 4}" for i in range(24)]
    write(tmp_path, "\n".join(["file,label", *rows]))
    merged = dataclasses.replace(FILE_LABEL, labels=tuple("0123"), classes=("no", "no", "a", "a"))
    four, two = listed(tmp_path), listed(tmp_path, merged)
    assert (len(four.classes), len(two.classes)) == (4, 2)
    assert sorted(names(four, "test")) == sorted(names(two, "test"))


def test_a_column_of_parts_decides(tmp_path: Path) -> None:
    cells(tmp_path, 6)
    words = ("train", "Test", "TRAINING", "test", "val", "train")
    lines = [f"images/c{i:02d}.png,{'ab'[i // 2 % 2]},{word}" for i, word in enumerate(words)]
    write(tmp_path, "\n".join(["file,label,part", *lines, ""]))
    write(tmp_path, (tmp_path / "labels.csv").read_text().replace("c05.png,a", "c05.png,b"))
    listing = listed(tmp_path, dataclasses.replace(FILE_LABEL, columns=("file", "label", "part")))
    assert listing.faults == ()
    assert names(listing) == ["c00.png", "c02.png", "c05.png"]
    assert names(listing, "test") == ["c01.png", "c03.png"]
    assert names(listing, "validation") == ["c04.png"]
    assert "(as labels.csv say" in listing.lines()[0]


def test_without_a_test_part_the_validation_part_is_the_test(tmp_path: Path) -> None:
    cells(tmp_path, 6)
    rows = [f"images/c{i:02d}.png,{'ab'[i % 2]},{('train', 'Dev')[i > 3]}" for i in range(6)]
    write(tmp_path, "\n".join(["file,label,part", *rows]))
    listing = listed(tmp_path, dataclasses.replace(FILE_LABEL, columns=("file", "label", "part")))
    assert (len(listing.train), len(listing.validation)) == (4, 0)
    assert names(listing, "test") == ["c04.png", "c05.png"]


def in_folders(root: Path, *folders: str) -> Path:
    """Make three pictures of each label in each folder, and a table of them without parts."""
    names = [f"{folder}/{i}.png" for folder in folders for i in range(6)]
    for shade, name in enumerate(names):
        picture(root / name, shade)
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)]
    write(root, "\n".join(["file,label", *rows]))
    return root


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("parts", [("Train", "test_set"), ("training", "val"), ("train", "dev")])
def test_folders_give_the_parts_that_no_table_says(
    tmp_path: Path, below: str, parts: Sequence[str]
) -> None:
    in_folders(tmp_path, *(f"{below}{part}/more" for part in parts))
    listing = listed(tmp_path)
    assert {path.parts[-3] for path, _ in listing.train} == {parts[0]}
    assert {path.parts[-3] for path, _ in listing.test} == {parts[1]}
    assert listing.lines()[0] == "6 to train, 6 to test (as the folders say), 2 classes"
    assert examine(listing).document()["parts"] == "folders"


def test_folders_of_all_parts_and_a_share_that_is_stated(tmp_path: Path) -> None:
    in_folders(tmp_path, "train", "val", "test")
    counts = [len(part) for part in dataclasses.astuple(listed(tmp_path))[2:4]]
    assert (counts, len(listed(tmp_path).validation)) == ([6, 6], 6)
    share = listed(tmp_path, dataclasses.replace(FILE_LABEL, test_share=0.5))
    assert (len(share.train), len(share.test), share.was_split) == (10, 8, False)


@pytest.mark.parametrize("folders", [("train",), ("train", "bus"), ("test", "val"), ("a", "b")])
def test_other_folders_are_no_parts(tmp_path: Path, folders: Sequence[str]) -> None:
    listing = listed(in_folders(tmp_path, *folders))
    assert not listing.was_split
    assert "chosen by data.seed" in listing.lines()[0]


def test_each_table_can_be_a_part(tmp_path: Path) -> None:
    cells(tmp_path, 6)
    write(tmp_path, "file,label\nimages/c00.png,a\nimages/c01.png,b\n", "train.csv")
    write(tmp_path, "label,file\na,images/c02.png\n", "test.csv")
    listing = listed(tmp_path, dataclasses.replace(FILE_LABEL, files=("train.csv", "test.csv")))
    assert (names(listing), names(listing, "test")) == (["c00.png", "c01.png"], ["c02.png"])
    assert listing.was_split
    unnamed = next(entry for entry in listing.left_out if "no row names" in entry.reason)
    assert unnamed.count == 3


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_delimiters_without_a_line_of_names(tmp_path: Path, delimiter: str) -> None:
    cells(tmp_path, header=None)
    mark = DELIMITERS[delimiter] * (3 if delimiter == "space" else 1)
    write(tmp_path, (tmp_path / "labels.csv").read_text().replace(",", mark))
    listing = listed(tmp_path, dataclasses.replace(NUMBERED, delimiter=delimiter))
    assert (len(listing.pictures), listing.faults) == (10, ())


def test_quotes_line_ends_and_the_mark_of_utf8(tmp_path: Path) -> None:
    cells(tmp_path, 2)
    picture(tmp_path / 'a, "b".png')
    rows = ['"file","note","label"', 'images/c00.png,"two\r\nlines",x', "images/c01.png,,x"]
    text = "\r\n".join([*rows, '"a, ""b"".png",z,"y, z"', "", ""])
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    listing = listed(tmp_path)
    assert (listing.faults, listing.classes) == ((), ("x", "y, z"))
    assert len(listing.pictures) == 3


def test_a_pattern_says_where_a_row_s_picture_is(tmp_path: Path) -> None:
    cells(tmp_path, 4)
    write(tmp_path, "id,label\nc00,a\nc01,b\nc02,a\nc03,b\n")
    keys: dict[str, Any] = {"columns": ("id", "label"), "path": "images/{}.png"}
    assert len(listed(tmp_path, dataclasses.replace(FILE_LABEL, **keys)).pictures) == 4


def test_numbers_are_in_the_order_of_numbers_and_get_names(tmp_path: Path) -> None:
    cells(tmp_path, 6)
    labels = ("10", "2", "0.5", "10", "2", "0.5")
    rows = [f"images/c{i:02d}.png,{label}" for i, label in enumerate(labels)]
    write(tmp_path, "\n".join(["file,label", *rows]))
    assert listed(tmp_path).classes == ("0.5", "2", "10")
    stated: dict[str, Any] = {"labels": ("2", "0.5", "10"), "classes": ("good", "bad", "good")}
    listing = listed(tmp_path, dataclasses.replace(FILE_LABEL, **stated))
    assert listing.classes == ("good", "bad")
    counts = {count["name"]: sum(map(int, list(count.values())[1:])) for count in listing.counts()}
    assert counts == {"good": 4, "bad": 2}


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    cells(tmp_path, 3)
    picture(tmp_path / "images" / "BIG.PNG")
    (tmp_path / "images" / "new.heic").write_bytes(b"x")
    lines = (
        "file,label,part",
        "images/c00.png,a,train",
        "images/c00.png,b,train",
        "images/c01.png,,train",
        "images/c01.png,a,exam",
        "images/c01.png,a",
        "images/none.png,a,train",
        "images/big.png,a,train",
        "images/new.heic,a,train",
        "images/c01,a,train",
        ",a,train",
        "images/c02.png,c,test",
    )
    write(tmp_path, "\n".join(lines))
    one = dataclasses.replace(FILE_LABEL, columns=("file", "label", "part"))
    told = faults(tmp_path, one)
    for line, words in (
        (3, "expected the label 'a' of labels.csv line 2 for images/c00.png, got 'b'"),
        (4, "expected a label of 1 to 200 printable characters"),
        (5, "expected train, test or val, got 'exam'"),
        (6, "expected 3 columns as in line 1, got 2"),
        (7, "images/none.png: no such picture"),
        (8, "images/BIG.PNG is there"),
        (9, "HEIC is not read"),
        (10, "expected a picture's suffix"),
        (11, "expected a path of 1 to 1000"),
    ):
        assert any(f.startswith(f"labels.csv line {line}: ") and words in f for f in told), words
    assert told[-1].endswith("expected pictures to train for every class, got none for 'c'")
    assert len(told) == 10
    with pytest.raises(DataError, match="10 faults") as caught:
        data.load(recipe_of(one), root=tmp_path)
    assert len(caught.value.faults) == 10


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    cells(tmp_path, 6)
    picture(tmp_path / "more" / "z.png")
    (tmp_path / "notes.md").touch()
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("./images/c00.png,intact\n")
    left_out = {entry.reason: entry.paths for entry in listed(tmp_path).left_out}
    assert left_out == {
        "files of other kinds (.md)": ("notes.md",),
        "rows that name a picture once more": ("images/c00.png",),
        "pictures that no row names": ("more/z.png",),
    }


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("path", "label"), "expected column 'path' once, got 'file', 'label'"),
        ((1, 3), "expected column 3, got 2 columns"),
    ],
)
def test_a_column_that_is_not_there(
    tmp_path: Path, columns: tuple[str | int, ...], words: str
) -> None:
    told = faults(cells(tmp_path), dataclasses.replace(FILE_LABEL, columns=columns))
    assert told == [f"labels.csv line 1: {words}"]


def test_labels_that_the_recipe_does_not_name(tmp_path: Path) -> None:
    one = dataclasses.replace(FILE_LABEL, labels=("intact", "cracked"))
    told = faults(cells(tmp_path, 4), one)
    assert told[:2] == [
        f"labels.csv line {n}: expected one of data.labels, got 'broken'" for n in (3, 5)
    ]
    assert "got none for 'cracked'" in told[2]


def test_other_data_than_those_of_the_recipe(tmp_path: Path) -> None:
    cells(tmp_path)
    digest = sha256((tmp_path / "labels.csv").read_bytes())
    pinned = dataclasses.replace(FILE_LABEL, sha256=(digest,))
    assert listed(tmp_path, pinned).faults == ()
    write(tmp_path, "file,label\n")
    with pytest.raises(DataError, match=f"expected {digest}, got sha256:"):
        listed(tmp_path, pinned)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_table(tmp_path: Path, text: str) -> None:
    write(cells(tmp_path), text)
    assert faults(tmp_path) == ["labels.csv: expected rows, got an empty table"]


def test_text_of_a_spreadsheet_that_is_no_utf8_is_told_its_line(tmp_path: Path) -> None:
    (cells(tmp_path) / "labels.csv").write_bytes("file,label\na.png,Möwe\n".encode("cp1252"))
    with pytest.raises(DataError, match="line 2: expected UTF-8 text, got byte 0xf6"):
        listed(tmp_path)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), quoted=st.booleans(), swapped=st.booleans())
def test_law_the_order_of_rows_and_columns_changes_nothing(
    tmp_path: Path, seed: int, quoted: bool, swapped: bool
) -> None:
    """Law: classes, parts and their order are those of the unshuffled table."""
    cells(tmp_path, 12)
    before = listed(tmp_path)
    head, *rows = (tmp_path / "labels.csv").read_text().splitlines()
    random.Random(seed).shuffle(rows)
    lines = [line.split(",")[:: -1 if swapped else 1] for line in (head, *rows)]
    mark = '"' if quoted else ""
    write(tmp_path, "\n".join(",".join(f"{mark}{cell}{mark}" for cell in line) for line in lines))
    assert listed(tmp_path) == before
    assert np.bincount([label for _, label in before.test]).tolist() == [1, 1]


# Hostile tables, each named after its attack


def many_columns() -> str:
    return "file,label" + "," * 10**7


def many_empty_columns_in_a_short_row() -> str:
    return "file,label" + "," * 60_000


def a_quote_that_never_closes() -> str:
    return 'file,label\n"images/c00.png,intact\n' + "images/c01.png,broken\n" * 4000


def a_quote_that_never_closes_in_a_short_table() -> str:
    return 'file,label\n"images/c00.png,intact\n'


def a_line_without_an_end() -> str:
    return "file,label\n" + "y" * 10**6


FORMS = {
    many_columns: "line 1: expected rows of at most 65536 characters",
    many_empty_columns_in_a_short_row: "line 1: expected at most 10000 columns, got 60002",
    a_quote_that_never_closes: "line 2: expected rows of at most 65536 characters: is a quote",
    a_quote_that_never_closes_in_a_short_table: "line 2: unexpected end of data: is a quote",
    a_line_without_an_end: "line 2: expected rows of at most 65536 characters",
}


@pytest.mark.parametrize("attack", FORMS, ids=lambda attack: attack.__name__)
def test_a_table_that_is_no_table(tmp_path: Path, attack: object) -> None:
    write(cells(tmp_path), attack())  # type: ignore[operator]
    assert any(FORMS[attack] in fault for fault in faults(tmp_path))  # type: ignore[index]


PATHS = {
    "up_and_out": "../secret.png",
    "down_up_and_out": "images/../../secret.png",
    "absolute": "/etc/secret.png",
    "absolute_on_windows": "C:/secret.png",
    "backslashes": "images\\..\\..\\secret.png",
    "the_folder_itself": ".",
    "a_null": "images/c00.png\0.txt",
    "a_mark_that_turns_the_text": "images/\u202egnp.png",
    "endless": "images/" + "a/" * 600 + "a.png",
    "a_link_that_leads_out": "images/link.png",
    "hidden": "images/.hidden.png",
}


@pytest.mark.parametrize("attack", PATHS)
def test_no_path_leaves_the_folder(tmp_path: Path, attack: str) -> None:
    root = cells(tmp_path / "in", 4)
    picture(tmp_path / "secret.png")
    picture(root / "images" / ".hidden.png")
    (root / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    with (root / "labels.csv").open("a", encoding="utf-8", newline="") as file:
        file.write(PATHS[attack] + ",intact\n")
    listing = listed(root)
    assert any(fault.path == "labels.csv line 6" for fault in listing.faults)
    assert all(path.resolve().is_relative_to(root.resolve()) for path, _ in listing.pictures)
    assert len(listing.pictures) == 4


def test_a_pattern_cannot_turn_an_absolute_path_into_one_below(tmp_path: Path) -> None:
    write(cells(tmp_path), "file,label\n/c00.png,a\nc01.png,b\nc03.png,a\n")
    told = faults(tmp_path, dataclasses.replace(FILE_LABEL, path="images/{}"))
    assert told == [
        f"labels.csv line 2: expected a path below {tmp_path}, with '/', got '/c00.png'"
    ]


def test_a_table_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = cells(tmp_path / "in")
    (root / "labels.csv").rename(tmp_path / "labels.csv")
    (root / "labels.csv").symlink_to(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="leads out of"):
        listed(root)


def test_numbers_of_rows_bytes_and_faults_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells(tmp_path)
    monkeypatch.setattr(DataError, "LISTED", 3)
    write(tmp_path, "file,label\n" + "no.png,a\n" * 9)
    told = faults(tmp_path)
    assert len(told) == 4
    assert told[-1] == "labels.csv line 5: too many faults: nothing from here on was read"
    monkeypatch.setattr(table, "MAX_ROWS", 2)
    assert any("at most 2 rows" in fault for fault in faults(cells(tmp_path)))
    monkeypatch.setattr(table, "MAX_BYTES", 100)
    with pytest.raises(StorageError, match="at most 100 bytes"):
        listed(tmp_path)


def test_a_label_for_each_picture_is_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.training.data.labelled.MAX_CLASSES", 3)
    write(cells(tmp_path, 4), "file,label\n" + "".join(f"images/c0{i}.png,{i}\n" for i in range(4)))
    with pytest.raises(DataError, match="at most 3 classes, got 4 different labels"):
        listed(tmp_path)
