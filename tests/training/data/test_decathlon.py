"""The Visual Decathlon's annotations: read as the challenge writes them, refused when they lie."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from toolchain import recipe
from toolchain.core.errors import DataError
from toolchain.recipe import Recipe
from toolchain.recipe.library import packaged
from toolchain.training import data


def aircraft(name: str = "vd_aircraft") -> Recipe:
    base = recipe.load(packaged() / f"{name}.yaml")
    square = dataclasses.replace(base.preprocess, size=8, resize=8)
    return dataclasses.replace(base, preprocess=square)


def document(dataset: str, part: str, prefix: str) -> dict[str, Any]:
    """Return annotations of three pictures, ids not in order, categories from 10."""
    images = [
        {"id": 100 + i, "file_name": f"{prefix}{part}/{i % 2}/{i}.png", "width": 9, "height": 9}
        for i in (2, 0, 1)
    ]
    annotations = [
        {"id": i, "image_id": 100 + i, "category_id": 10 + i % 2, "bbox": [0, 0, 9, 9]}
        for i in range(3)
    ]
    categories = [{"id": 11, "name": "707-320"}, {"id": 10, "name": f"Föhn {dataset}"}]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}


def build(root: Path, dataset: str = "aircraft", *, own_folder: bool = False) -> Path:
    base = root / dataset if own_folder else root
    prefix = "" if own_folder else f"data/{dataset}/"
    (base / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        content = document(dataset, part, prefix)
        for image in content["images"]:
            path = base / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (image["id"], 0, 0)).save(path)
        save(base, dataset, part, content)
    return root


def save(base: Path, dataset: str, part: str, content: object) -> None:
    path = base / "annotations" / f"{dataset}_{part}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("own_folder", [False, True])
def test_both_layouts(tmp_path: Path, own_folder: bool) -> None:
    loaded = data.load(aircraft(), root=build(tmp_path, own_folder=own_folder))
    assert loaded.classes == ("Föhn aircraft", "707-320")
    assert loaded.train.labels.tolist() == [0, 1, 0]
    assert loaded.test.batch([0, 1, 2])[0][:, 0, 0, 0].tolist() == [100, 101, 102]


def test_the_data_set_need_not_be_the_domain(tmp_path: Path) -> None:
    loaded = data.load(aircraft("vd_vgg_flowers"), root=build(tmp_path, "vgg-flowers"))
    assert len(loaded.train) == 3


def test_missing_data_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)aircraft_train\.json.*├── annotations/"):
        data.load(aircraft(), root=tmp_path)
    (build(tmp_path) / "annotations" / "aircraft_val.json").unlink()
    with pytest.raises(DataError, match=r"(?s)aircraft_val\.json, not found.*├── annotations/"):
        data.load(aircraft(), root=tmp_path)


def poisoned(kind: str) -> Any:
    content = document("aircraft", "train", "data/aircraft/")
    images, annotations, categories = (
        content["images"],
        content["annotations"],
        content["categories"],
    )
    match kind:
        case "no_images":
            del content["images"]
        case "images_is_a_dict":
            content["images"] = {"id": 1}
        case "empty_categories":
            content["categories"] = []
        case "image_is_a_list":
            images[1] = [1, 2]
        case "image_without_id":
            del images[0]["id"]
        case "id_is_true":
            images[0]["id"] = True
        case "id_is_text":
            annotations[0]["image_id"] = "100"
        case "duplicate_image_id":
            images[0]["id"] = images[1]["id"]
        case "duplicate_category_id":
            categories[0]["id"] = categories[1]["id"]
        case "unknown_image":
            annotations[0]["image_id"] = 999
        case "unknown_category":
            annotations[0]["category_id"] = 999
        case "two_labels":
            annotations.append({"image_id": 100, "category_id": 11})
        case "no_label":
            annotations.pop()
        case "climbing_path":
            images[0]["file_name"] = "data/../../secret.png"
        case "absolute_path":
            images[0]["file_name"] = "/etc/secret.png"
        case "backslash_path":
            images[0]["file_name"] = "..\\secret.png"
        case "drive_path":
            images[0]["file_name"] = "C:/secret.png"
        case "not_a_picture":
            images[0]["file_name"] = "data/notes.txt"
        case "control_character_in_name":
            categories[0]["name"] = "a\x1b[31m"
        case "long_name":
            categories[0]["name"] = "x" * 501
        case "list_on_top":
            return [content]
    return content


MESSAGES = {
    "no_images": "images: expected a list",
    "images_is_a_dict": "images: expected a list",
    "empty_categories": "got 0 entries",
    "image_is_a_list": r"images\[1\]: expected an object",
    "image_without_id": r"images\[0\]\.id: expected a whole number",
    "id_is_true": r"images\[0\]\.id: expected a whole number",
    "id_is_text": r"annotations\[0\]\.image_id: expected a whole",
    "duplicate_image_id": "stands twice",
    "duplicate_category_id": "stands twice",
    "unknown_image": "no image 999",
    "unknown_category": "no category 999",
    "two_labels": "has two categories",
    "no_label": "has no annotation",
    "climbing_path": "below the root",
    "absolute_path": "below the root",
    "backslash_path": "below the root",
    "drive_path": "below the root",
    "not_a_picture": "expected a picture",
    "control_character_in_name": "printable",
    "long_name": "printable",
    "list_on_top": "an object at the top",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_lying_annotation_is_refused(kind: str, tmp_path: Path) -> None:
    build(tmp_path)
    save(tmp_path, "aircraft", "train", poisoned(kind))
    with pytest.raises(DataError, match=rf"aircraft_train\.json: .*{MESSAGES[kind]}"):
        data.load(aircraft(), root=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "at most 16 levels"),
        ('{"a": ' * 50 + "1" + "}" * 50, "at most 16 levels"),
        ('{"id": ' + "9" * 5000 + "}", "at most 18 digits"),
        ('{"id": NaN}', "got NaN"),
        ("\udcff", "not JSON"),
    ],
)
def test_text_that_is_no_json_is_refused(text: str, words: str, tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "annotations" / "aircraft_train.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        data.load(aircraft(), root=tmp_path)


def test_brackets_in_text_do_not_count_as_depth(tmp_path: Path) -> None:
    build(tmp_path)
    for part in ("train", "val"):
        content = document("aircraft", part, "data/aircraft/")
        content["info"] = {"note": '\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[['}
        save(tmp_path, "aircraft", part, content)
    assert len(data.load(aircraft(), root=tmp_path).train) == 3


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "root")
    Image.new("RGB", (9, 9)).save(tmp_path / "private.png")
    link = tmp_path / "root" / "data" / "aircraft" / "train" / "0" / "0.png"
    link.unlink()
    link.symlink_to(tmp_path / "private.png")
    with pytest.raises(DataError, match="leads out"):
        data.load(aircraft(), root=tmp_path / "root")


def test_parts_that_name_a_category_differently_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    content = document("other", "val", "data/aircraft/")
    save(tmp_path, "aircraft", "val", content)
    with pytest.raises(DataError, match="category 10 is"):
        data.load(aircraft(), root=tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 120) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(["id", "file_name", "image_id", "category_id", "name"]),
    value=JSON,
)
def test_law_a_changed_entry_loads_or_is_a_data_error(
    where: str, key: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: whatever stands in an entry, loading gives data or DataError, nothing else."""
    root = build(tmp_path_factory.mktemp("vd"))
    content = document("aircraft", "train", "data/aircraft/")
    content[where][0][key] = value
    save(root, "aircraft", "train", content)
    try:
        loaded = data.load(aircraft(), root=root)
    except DataError as err:
        assert err.fix
    else:
        assert len(loaded.train) == 3


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    for part in ("train", "val"):
        content = document("aircraft", part, "data/aircraft/")
        content["categories"][0]["name"] = content["categories"][1]["name"]
        save(tmp_path, "aircraft", part, content)
    with pytest.raises(DataError, match="categories 11 and 10 are both 'Föhn aircraft'"):
        data.load(aircraft(), root=tmp_path)
