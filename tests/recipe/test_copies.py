"""Copies of pictures are found in any part and class, by their bytes alone."""

from __future__ import annotations

import os
from pathlib import Path

from toolchain.recipe.copies import find_copies
from toolchain.recipe.listing import scan

HEAD = b"the same first bytes, as one camera writes them" * 200


def write(root: Path, pictures: dict[str, bytes]) -> Path:
    for name, content in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(HEAD + content)
    return root


def test_pictures_of_one_size_are_no_copies(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]
    root = write(tmp_path, {name: name.encode() for name in names})
    # One that differs in its first byte alone, behind the bytes that are compared first.
    (root / "cat/5.png").write_bytes(b"T" + (root / "cat/0.png").read_bytes()[1:])
    copies = find_copies(scan(root))
    assert (copies.count, copies.tested, copies.classes, copies.lines()) == (0, 0, 0, [])


def test_a_copy_in_the_test_and_one_in_another_class_are_told(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "train/cat/a.png": b"1",
            "train/cat/b.png": b"2",
            "train/dog/a.png": b"3",
            "test/cat/x.png": b"1",
            "test/cat/y.png": b"5",
            "test/dog/x.png": b"2",
            "test/dog/z.png": b"7",
        },
    )
    copies = find_copies(scan(root))
    assert copies.pairs == (
        ("test/cat/x.png", "train/cat/a.png"),
        ("test/dog/x.png", "train/cat/b.png"),
    )
    assert (copies.count, copies.tested, copies.classes) == (2, 2, 2)
    first, tested, classes = copies.lines()
    assert "test/cat/x.png of train/cat/a.png" in first
    assert tested.startswith("2 pictures of the test are in another part")
    assert classes.startswith("2 pictures are in several classes")


def test_links_and_copies_inside_one_part_are_copies(tmp_path: Path) -> None:
    root = write(tmp_path, {f"train/{name}/0.png": name.encode() for name in ("cat", "dog")})
    write(tmp_path, {f"test/{name}/1.png": name.encode() * 2 for name in ("cat", "dog")})
    os.link(root / "train/cat/0.png", root / "train/cat/1.png")
    (root / "train/cat/2.png").symlink_to("0.png")
    copies = find_copies(scan(root))
    assert (copies.count, copies.tested, copies.classes) == (2, 0, 0)
    assert len(copies.lines()) == 1
