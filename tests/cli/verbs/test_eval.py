"""``da3 eval``: figures of a bundle on labelled pictures, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.support.damage import repacked
from tests.support.drawn import pixels
from tests.support.exported import Exported
from toolchain.bundle import open_bundle
from toolchain.cli.verbs.eval import evaluate
from toolchain.core.canonical import canonical_json
from toolchain.core.confusion import Confusion
from toolchain.device import Runner
from toolchain.recipe import DataSpec, dump
from toolchain.training.data import FileSplit, load
from toolchain.training.data.splits import Pictures


@pytest.fixture(scope="module")
def classes(exported: Exported) -> tuple[str, ...]:
    return exported.report.manifest.classes


@pytest.fixture(scope="module")
def photos(classes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures in the folders of two of the domain's classes."""
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(pixels(20)):
        place = folder / classes[index % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def trained_by(
    exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """The bundle as if its training had read pictures with a loader that is named."""

    def made(loader: str) -> Exported:
        keys: dict[str, Any] = (
            {"files": ("a.csv",), "columns": ("file", "label")} if loader == "csv" else {}
        )
        data = DataSpec(loader, "PATH", None, None, 1, **keys)
        text = dump(dataclasses.replace(exported.domain.recipe, data=data, golden=None))
        folder = tmp_path_factory.mktemp(loader)
        training = json.loads(open_bundle(exported.bundle).blob("training.json"))
        # So many classes that their cells were not noted: nobody can tell whose test it was.
        training["metrics"]["confusion"] = []
        files = {"recipe.yaml": text.encode(), "training.json": canonical_json(training)}
        bundle = repacked(exported, folder, files)
        report = dataclasses.replace(exported.report, bundle=bundle)
        return dataclasses.replace(exported, report=report)

    return made


def invoke(exported: Exported, folder: Path, *words: str) -> Result:
    return CliRunner().invoke(evaluate, [str(exported.bundle), str(folder), *words])


def found(exported: Exported, folder: Path, *words: str) -> dict[str, Any]:
    result = invoke(exported, folder, *words, "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_its_figures_are_those_of_the_runners_answers(
    exported: Exported, photos: Path, classes: tuple[str, ...]
) -> None:
    labels, answers = [], []
    with Runner(exported.backbone) as runner:
        runner.load(exported.bundle)
        for path in sorted(photos.rglob("*.png")):
            labels.append(classes.index(path.parent.name))
            answers.append(runner.run(path).index)
    right = Confusion.of(labels, answers, len(classes))
    document = found(exported, photos)
    assert (document["pictures"], document["part"]) == (20, "all")
    assert document["accuracy"] == right.accuracy
    assert document["balanced_accuracy"] == right.balanced_accuracy
    cells = {(c["class"], c["taken_for"]): c["pictures"] for c in document["confusion"]}
    assert cells == {(classes[t], classes[a]): count for t, a, count in right.cells}
    assert [one["name"] for one in document["per_class"]] == list(classes)
    assert all(0 <= rate <= 1 for rate in document["gate_rates"].values())


def test_the_part_of_the_test_is_what_training_keeps(exported: Exported, photos: Path) -> None:
    assert found(exported, photos, "--part", "test")["pictures"] == 4


def test_of_a_folder_without_parts_what_training_held_out_is_judged(
    trained_by: Callable[[str], Exported], photos: Path, tmp_path: Path
) -> None:
    by_folder = trained_by("folder")
    document = found(by_folder, photos)
    assert (document["part"], document["pictures"]) == ("test", 4)
    assert found(by_folder, photos, "--part", "all")["pictures"] == 20
    assert "4, the fifth of each class that training holds out" in invoke(by_folder, photos).stdout
    data = DataSpec("folder", str(photos), None, None, 1)
    trained = load(dataclasses.replace(by_folder.domain.recipe, data=data))
    assert isinstance(trained.test, FileSplit)
    assert isinstance(trained.test.store, Pictures)
    held_out = trained.test.store.paths[trained.test.start :]
    with Runner(by_folder.backbone) as runner:
        runner.load(by_folder.bundle)
        answers = Counter((Path(path).parent.name, runner.run(path).label) for path in held_out)
    cells = {(c["class"], c["taken_for"]): c["pictures"] for c in document["confusion"]}
    assert cells == answers
    # Without the held out ones nobody can say which ones training saw.
    assert found(trained_by("csv"), photos)["part"] == "all"
    assert (
        "all of the folder; training may have seen some" in invoke(trained_by("csv"), photos).stdout
    )
    for path in sorted(photos.iterdir()):
        (tmp_path / path.name).mkdir()
        shutil.copy(next(path.iterdir()), tmp_path / path.name)
    result = invoke(by_folder, tmp_path)
    assert result.exit_code == 1
    assert "expected pictures that training holds out, got none of 2" in result.stderr
    assert found(by_folder, tmp_path, "--part", "all")["pictures"] == 2


def test_of_another_folder_all_are_judged(
    trained_by: Callable[[str], Exported], photos: Path, tmp_path: Path
) -> None:
    """The counts of the test that training noted are not those of this folder."""
    by_folder = trained_by("folder")
    opened = open_bundle(by_folder.bundle)
    training = json.loads(opened.blob("training.json"))
    # As training notes it: class, answer, pictures. Of the first two classes two were tested each.
    for counts, expected in (([[0, 0, 2], [1, 0, 1], [1, 1, 1]], 4), ([[0, 0, 5], [1, 1, 5]], 20)):
        training["metrics"]["confusion"] = counts
        payloads = {
            "recipe.yaml": opened.blob("recipe.yaml"),
            "training.json": canonical_json(training),
        }
        (tmp_path / str(expected)).mkdir()
        path = repacked(by_folder, tmp_path / str(expected), payloads)
        report = dataclasses.replace(by_folder.report, bundle=path)
        exported = dataclasses.replace(by_folder, report=report)
        assert found(exported, photos)["pictures"] == expected


def test_train_and_test_folders_are_told_apart(
    exported: Exported, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "train")
    name = sorted(path.name for path in photos.iterdir())[0]
    (tmp_path / "test" / name).mkdir(parents=True)
    shutil.copy(next((photos / name).iterdir()), tmp_path / "test" / name / "one.png")
    assert found(exported, tmp_path)["pictures"] == 1
    assert found(exported, tmp_path, "--part", "all")["pictures"] == 21


def test_for_people_every_class_has_its_line(
    exported: Exported, photos: Path, classes: tuple[str, ...], tmp_path: Path
) -> None:
    result = invoke(exported, photos, "--page", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    for words in ("20, all of the folder", "accuracy", "mean of classes", *classes[:2]):
        assert words in result.stdout
    text = (tmp_path / "page.html").read_text()
    assert all(name in text for name in classes)
    assert "http" not in text


def test_a_damaged_picture_is_named_and_counts_nowhere(
    exported: Exported, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    broken = sorted((tmp_path / "photos").rglob("*.png"))[:2]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    result = invoke(exported, tmp_path / "photos", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["pictures"] == 18
    assert [one["source"] for one in document["unusable"]] == [str(path) for path in broken]
    assert all(str(path) in result.stderr for path in broken)


def test_a_folder_that_is_no_class_is_refused(
    exported: Exported, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    next((tmp_path / "photos").iterdir()).rename(tmp_path / "photos" / "zebra")
    result = invoke(exported, tmp_path / "photos")
    assert result.exit_code == 1
    assert "classes, got 'zebra'" in result.stderr


def test_a_class_of_the_test_alone_is_held_to_the_bundles_classes(
    exported: Exported, photos: Path, classes: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(photos / classes[0], tmp_path / "train" / classes[0])
    shutil.copytree(photos / classes[1], tmp_path / "test" / classes[1])
    assert found(exported, tmp_path)["pictures"] == 10
    (tmp_path / "test" / classes[1]).rename(tmp_path / "test" / "zebra")
    result = invoke(exported, tmp_path)
    assert result.exit_code == 1
    assert "classes, got 'zebra'" in result.stderr
    assert "name the class folders as the domain's classes are" in result.stderr


def test_it_never_imports_torch(exported: Exported, photos: Path) -> None:
    code = (
        "import sys; from toolchain.cli import root\n"
        f"root.main(args=['eval', {str(exported.bundle)!r}, {str(photos)!r}], "
        "standalone_mode=False)\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
