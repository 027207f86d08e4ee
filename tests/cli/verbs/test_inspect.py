"""``da3 inspect``: each kind for people and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.toy_export import Run, invoke, write_recipe
from toolchain import bundle
from toolchain.cli.show.domain import patch_document
from toolchain.inspect.file_facts import tensors


@pytest.fixture(scope="module")
def unpacked(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked") / "toy"
    bundle.unpack(run.bundle, folder)
    return folder


def shown(path: Path) -> str:
    result = invoke("inspect", str(path))
    assert result.exit_code == 0, result.stderr
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    return result.stdout


def document(path: Path) -> dict[str, object]:
    answer = json.loads(invoke("inspect", str(path), "--json").stdout)
    assert set(answer) == {"kind", "path", "facts"}
    facts: dict[str, object] = answer["facts"]
    return facts | {"kind": answer["kind"]}


def test_a_bundle(run: Run) -> None:
    text = shown(run.bundle)
    opened = bundle.open_bundle(run.bundle)
    for words in (
        *(opened.manifest_digest, opened.manifest.backbone.weights_digest, "across"),
        *("slots.safetensors", "block00", "adaptor", "gate", "selftest", "swap-rows.batch16"),
        *("RGB 12x12", "torch 2.13.0", "CC0-1.0"),
        *("mean of classes", "20 of 20, the last, without validation", "most often taken for"),
    ):
        assert words in text
    # da2's option is in the manifest and means nothing for da3.
    assert "attention" not in text
    facts = document(run.bundle)
    assert set(facts) == {
        *("kind", "manifest_digest", "size_bytes", "pictures", "blocks", "manifest", "training")
    }
    assert facts["manifest"] == {**json.loads(opened.manifest.to_json()), "patch": None}
    trained = document(run.checkpoint)["info"]
    assert facts["training"] == trained
    assert sum(count for _, _, count in trained["metrics"]["confusion"]) == 60  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("tuned", "whole", "finetune changes 16 of 16 tensors of the backbone: the bundle carries"),
        ("masked", "masked", "piggyback masks 8 of 16 tensors of the backbone: the bundle carries"),
        (
            "normed",
            "tensors",
            "bn changes 14 of 16 tensors of the backbone: the bundle carries them, "
            "7 as one factor per channel (",
        ),
    ],
)
def test_a_bundle_that_changes_the_backbone(fleet: Fleet, name: str, kind: str, told: str) -> None:
    path = fleet[name].bundle
    text = shown(path)
    assert told in text
    assert "patch.safetensors" in text
    assert told in invoke("inspect", str(path), "--brief").stdout
    manifest = bundle.open_bundle(path).manifest
    assert document(path)["manifest"] == json.loads(manifest.to_json())
    patch = patch_document(manifest)
    assert patch is not None
    assert patch["kind"] == kind
    assert patch["bytes"] == next(e.size for e in manifest.files if e.role == "patch")


def test_a_checkpoint(run: Run) -> None:
    text = shown(run.checkpoint)
    for words in ("toy  (Toy stripes)", "recipe sha256:", "block02", "head"):
        assert words in text
    facts = document(run.checkpoint)
    assert set(facts) == {"kind", "info", "size_bytes", "blocks", "slots"}


def test_a_backbone(run: Run) -> None:
    text = shown(run.backbone)
    for words in ("opset 18, IR version 10", "[16, 6, 6]", "weights.safetensors", "gateable"):
        assert words in text
    assert set(document(run.backbone)) == {"kind", "size_bytes", "manifest"}


def test_a_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    text = shown(path)
    for words in ("toy  (Toy cars", "10 epochs of batches of 16", "cars, train 60, test 40"):
        assert words in text
    assert document(path)["kind"] == "recipe"


def test_a_swap_graph_counts_its_slots(unpacked: Path) -> None:
    text = shown(unpacked / "swap-if.onnx")
    count = len(tensors(unpacked / "slots.safetensors").tensors)
    for words in ("ONNX, swap-if", f"{count} inputs, given at run time", "[1, 3, 12, 12]"):
        assert words in text
    assert "block00.adaptor" not in text
    facts = document(unpacked / "swap-if.onnx")
    assert (facts["role"], facts["branches"]) == ("swap-if", 4)
    assert facts["operators"]["If"] == 2  # type: ignore[index]


def test_static_graph_and_backbone_graph_name_their_files(unpacked: Path, run: Run) -> None:
    text = shown(unpacked / "static-if.onnx")
    assert "weights.safetensors" in text
    assert "slots.safetensors" in text
    assert "weights.safetensors" in shown(run.backbone / "backbone.onnx")


def test_golden_data_and_slots(unpacked: Path) -> None:
    text = shown(unpacked / "golden.safetensors")
    assert "golden data" in text
    assert "[12, 12, 3]" in text
    facts = document(unpacked / "golden.safetensors")
    assert set(facts) == {"kind", "cases", "natural", "picture", "classes", "sites", "gates"}
    text = shown(unpacked / "slots.safetensors")
    assert "tensors (safetensors)" in text
    assert "block00.adaptor" in text
    many = Path(__file__).parents[3] / "models" / "resnet20.safetensors"
    assert "more: --json" in shown(many)


def test_what_nobody_wrote_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of ours")
    result = invoke("inspect", str(tmp_path / "notes.txt"))
    assert result.exit_code == 2
    assert "expected a recipe (YAML), a checkpoint folder, an ONNX file" in result.stderr
    assert invoke("inspect", str(tmp_path / "missing")).exit_code == 1


def test_a_bundle_says_what_it_holds_of_peoples_data(run: Run) -> None:
    """Golden pictures are those of the test data, as the recipe says."""
    for text in (shown(run.bundle), invoke("inspect", str(run.bundle), "--brief").stdout):
        assert "holds" in text
        assert "names of the classes; pictures of the test data, for everyone who has" in text
    assert document(run.bundle)["pictures"] == "test"


def test_a_bundle_of_schema_1_is_shown_to_hold_pictures_and_perhaps_a_folder() -> None:
    """It does not say so itself, but no picture was drawn and no path left out at that time."""
    path = Path(__file__).parents[2] / "bundles" / "1" / "sample.da3b"
    text = shown(path)
    assert "pictures of the test data" in text
    assert "perhaps the folder of the data" in text
    assert document(path)["pictures"] == "test"


def test_brief_leaves_the_inside_of_a_bundle_out(run: Run) -> None:
    output = invoke("inspect", str(run.bundle), "--brief").stdout
    for word in ("backbone-toy-", "accuracy", "executed", "swap-rows.batch16", "block02"):
        assert word in output
    assert "slots.safetensors" not in output
    # README shows how it looks.
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    sample = readme.partition("<!-- output of: make cars -->")[2].split("```")[1]

    def labels(text: str) -> list[str]:
        found = re.findall(r"^  (\w+)  +\S", text, re.MULTILINE)
        return [label for label in found if not re.fullmatch(r"block\d+", label)]

    assert labels(sample) == labels(output)
