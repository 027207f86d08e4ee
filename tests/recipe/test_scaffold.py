"""A recipe for a user's own folder: complete, loadable, with what was read in its header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from toolchain import recipe
from toolchain.core.errors import DataError, ExistsError, RecipeError, StorageError, UsageError
from toolchain.recipe import build_command, listing, scaffold
from toolchain.training import data
from toolchain.training.data.forms import first_look

CLASSES = ('Ösel\'s "red" rose', "2nd class", "null", "yes", "- dash: x", "花", "#hash", "a b  c")


def fill(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 30)) -> Path:
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = (place * 20, i * 9 % 256, 128)
            Image.new("RGB", size, colour).save(root / name / f"{i:03d} é.png")
    return root


@pytest.fixture
def split_root(tmp_path: Path) -> Path:
    root = tmp_path / "my pictures, ünsorted"
    fill(root / "train", dict.fromkeys(CLASSES, 3))
    fill(root / "val", dict.fromkeys(CLASSES, 1), (90, 20))
    return root


def test_odd_names_work_from_folder_to_loaded_data(split_root: Path, tmp_path: Path) -> None:
    path = recipe.new("Blüten 1", split_root, backbone="resnet20", folder=tmp_path / "recipes")
    assert path.name == "Blüten 1.yaml"
    opened = recipe.load(recipe.find("Blüten 1", [tmp_path / "recipes"]))
    assert opened.data.root == str(split_root)
    loaded = data.load(opened)
    assert loaded.classes == tuple(sorted(CLASSES))
    assert (len(loaded.train), len(loaded.test)) == (24, 8)


def test_the_header_states_what_was_read(split_root: Path, tmp_path: Path) -> None:
    text = recipe.new("own", split_root, backbone="resnet20", folder=tmp_path).read_text("utf-8")
    for line in (
        f"# Build it:  da3-export --train --recipe {tmp_path}/own.yaml",
        "24 to train, 8 to test (as the folders say), 8 classes",
        "40 to 90 px wide, 20 to 30 px high (32 decoded)",
        "val/ is the part test",
        "#   classes   8",
        "#          4  花",
    ):
        assert line in text


def test_larger_inputs_get_a_border_to_crop(split_root: Path, tmp_path: Path) -> None:
    path = recipe.new("big", split_root, backbone="resnet50", input_px=224, folder=tmp_path)
    preprocess = recipe.load(path).preprocess
    assert (preprocess.size, preprocess.resize) == (224, 256)


def test_what_the_backbone_was_trained_with_is_written(split_root: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite: other means, another filter and another border than the usual ones."""
    stated = {"mean": (0.498, 0.498, 0.498), "std": (0.502, 0.502, 0.502), "resize": 280}
    path = recipe.new(
        "lite",
        split_root,
        backbone="lite0",
        input_px=224,
        interpolation="bicubic",
        folder=tmp_path,
        **stated,  # type: ignore[arg-type]
    )
    preprocess = recipe.load(path).preprocess
    assert (preprocess.size, preprocess.interpolation) == (224, "bicubic")
    assert {name: getattr(preprocess, name) for name in stated} == stated
    assert "does not say" not in path.read_text("utf-8")


def test_what_nobody_says_is_a_usual_value_and_told(split_root: Path, tmp_path: Path) -> None:
    path = recipe.new(
        "some", split_root, backbone="lite0", input_px=224, resize=280, folder=tmp_path
    )
    assert recipe.load(path).preprocess.mean == (0.485, 0.456, 0.406)
    assert "its training took for mean, std, interpolation:" in path.read_text("utf-8")


@pytest.mark.parametrize(("train", "epochs"), [(None, 20), (8, 60), (1000, 20)])
def test_few_pictures_are_shown_often_enough(
    train: int | None,
    epochs: int,
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 24 pictures, or of as many as the recipe takes."""
    monkeypatch.setattr(scaffold, "BATCH", 2)
    monkeypatch.setattr(scaffold, "STEPS", 240)
    spec, contents = first_look(split_root)
    spec = replace(spec, train=train)
    path = recipe.new("own", contents, spec=spec, backbone="resnet20", folder=tmp_path)
    assert recipe.load(path).train.epochs == epochs


def test_the_command_is_one_that_works_from_here() -> None:
    assert build_command(Path("recipes/a b.yaml")) == "da3-export --train --domain 'a b'"
    assert build_command(Path("x/b.yaml")) == "da3-export --train --recipe x/b.yaml"


def test_an_existing_recipe_is_kept(split_root: Path, tmp_path: Path) -> None:
    path = recipe.new("own", split_root, backbone="resnet20", folder=tmp_path)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ExistsError):
        recipe.new("own", split_root, backbone="resnet20", folder=tmp_path)
    assert path.read_text(encoding="utf-8") == "mine"
    recipe.new("own", split_root, backbone="resnet20", folder=tmp_path, overwrite=True)
    assert recipe.load(path).domain == "own"


@pytest.mark.parametrize("name", ["", "../own", "a/b", ".hidden", "own.", "x" * 65, "a\nb"])
def test_a_name_that_cannot_be_a_file_is_refused(name: str, split_root: Path) -> None:
    with pytest.raises(UsageError, match="expected a name"):
        recipe.new(name, split_root, backbone="resnet20", folder=split_root)


def test_nothing_is_written_for_a_bad_backbone(split_root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="backbone"):
        recipe.new("own", split_root, backbone="no such", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(split_root: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made"):
        recipe.new("own", split_root, backbone="resnet20", folder=tmp_path / "a" / "b")


@pytest.mark.parametrize("counts", [{}, {"one": 4}, {"one": 0, "two": 0}])
def test_too_little_is_refused_with_the_layout(counts: dict[str, int], tmp_path: Path) -> None:
    root = tmp_path / "few"
    root.mkdir()
    fill(root, counts)
    with pytest.raises(DataError, match="expected layout"):
        recipe.new("own", root, backbone="resnet20", folder=tmp_path)


def test_one_picture_a_class_is_told_to_have_two(tmp_path: Path) -> None:
    root = fill(tmp_path / "few", {"one": 1, "two": 1})
    with pytest.raises(DataError, match="at least 2 pictures into a class folder"):
        recipe.new("own", root, backbone="resnet20", folder=tmp_path)


def test_all_damaged_pictures_are_named_at_once(split_root: Path, tmp_path: Path) -> None:
    names = ["train/yes/000 é.png", "train/花/002 é.png", "val/null/000 é.png"]
    for name in names:
        (split_root / name).write_bytes((split_root / name).read_bytes()[:50])
    with pytest.raises(DataError, match="3 faults") as caught:
        recipe.new("own", split_root, backbone="resnet20", folder=tmp_path)
    assert [fault.path for fault in caught.value.faults] == names
    assert not (tmp_path / "own.yaml").exists()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(counts=st.lists(st.integers(2, 30), min_size=2, max_size=3))
def test_law_the_split_by_hash_is_complete_disjoint_and_stable(
    counts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: every picture is in one part; each class has both; moving the folder changes nothing."""
    parts = []
    for _ in range(2):
        root = tmp_path_factory.mktemp("data")
        for name, count in enumerate(counts):
            (root / f"c{name}").mkdir()
            for i in range(count):
                (root / f"c{name}" / f"{i}.jpg").touch()
        contents = listing.scan(root)
        train, test = (
            {path.relative_to(root) for path, _ in p} for p in (contents.train, contents.test)
        )
        assert not train & test
        assert len(train) + len(test) == sum(counts)
        labels = [np.bincount([label for _, label in p]) for p in (contents.train, contents.test)]
        assert all(len(one) == len(counts) and one.min() > 0 for one in labels)
        parts.append((train, test))
    assert parts[0] == parts[1]
