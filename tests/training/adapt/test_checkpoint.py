"""Checkpoints: what is saved comes back, and every fault is named, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import numpy as safetensors

from tests.support import stripes, toys
from toolchain.core import digest
from toolchain.core.canonical import canonical_json
from toolchain.core.confusion import Confusion
from toolchain.core.errors import CheckpointError, ExistsError, StorageError
from toolchain.training.adapt.attached import AttachedModel, domain_state, weights_digest
from toolchain.training.adapt.checkpoint import (
    INFO_FILE,
    TENSORS_FILE,
    Checkpoint,
    EpochFigures,
    History,
    read,
    write,
)
from toolchain.training.adapt.restore import load_checkpoint, restore
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.identity import recipe_digest
from toolchain.training.loop.models import build, save

Arrays = dict[str, npt.NDArray[Any]]

FOUND = Evaluation(
    Confusion(3, ((0, 0, 20), (1, 1, 20), (2, 0, 6), (2, 2, 14))),
    loss=0.3,
    executed_share=0.6,
    gate_rates={"block00": 0.25, "block02": 1.0},
)

EPOCH: dict[str, Any] = {
    "lr": 0.01,
    "loss": 0.5,
    "accuracy": 0.75,
    "executed_share": 0.6,
    "validation_accuracy": 0.7,
}


def keep(folder: Path, model: AttachedModel, **options: Any) -> Checkpoint:
    return save(folder, model, stripes.RECIPE, stripes.CLASSES, FOUND, **options)


@pytest.fixture
def model() -> AttachedModel:
    return toys.scrambled(stripes.model())


@pytest.fixture
def folder(tmp_path: Path, model: AttachedModel) -> Path:
    keep(tmp_path / "stripes", model, head_accuracy=0.5)
    return tmp_path / "stripes"


def rewrite(
    folder: Path,
    *,
    info: Callable[[Any], object] | None = None,
    tensors: Callable[[Arrays], Arrays] | None = None,
    digest_too: bool = True,
    bond: bool = True,
) -> None:
    """Change a saved checkpoint by functions of its JSON and of its tensors."""
    document = json.loads((folder / INFO_FILE).read_bytes())
    arrays = dict(read(folder).tensors)
    if tensors is not None:
        arrays = tensors(arrays)
    text = canonical_json(
        {
            "format": document["format"],
            "backbone_weights_digest": document["backbone"]["weights_digest"],
        }
    ).decode()
    data = safetensors.save(arrays, {"da3": text} if bond else None)
    if tensors is not None or not bond:
        (folder / TENSORS_FILE).write_bytes(data)
        if digest_too:
            document["tensors_sha256"] = digest.sha256(data)
    (folder / INFO_FILE).write_text(json.dumps(info(document) if info else document))


def test_what_is_saved_comes_back(folder: Path, model: AttachedModel) -> None:
    """Law: save then load gives the same bits, metadata included."""
    fresh = stripes.model()
    checkpoint = load_checkpoint(folder, fresh)
    for name, tensor in domain_state(model).items():
        assert torch.equal(domain_state(fresh)[name], tensor)
    assert checkpoint.info.classes == stripes.CLASSES
    assert checkpoint.info.preprocess == stripes.RECIPE.preprocess
    assert checkpoint.info.options == stripes.RECIPE.adaptor
    assert checkpoint.info.metrics.gate_rates == FOUND.gate_rates
    assert checkpoint.info.metrics.head_accuracy == 0.5
    assert checkpoint.info.backbone.weights_digest == weights_digest(model)
    assert checkpoint.info.backbone.head == "fc"
    assert checkpoint.info.recipe_digest == recipe_digest(stripes.RECIPE)


def test_how_it_was_trained_comes_back(tmp_path: Path, model: AttachedModel) -> None:
    """Law: classes, confusion and history are read as they were written."""
    history = History(epochs=(EpochFigures(**EPOCH),) * 2, epoch=1, validation=60)
    keep(tmp_path / "out", model, history=history)
    info = read(tmp_path / "out").info
    assert info.history == history
    assert info.metrics.confusion == FOUND.confusion.cells
    assert info.metrics.balanced_accuracy == FOUND.balanced_accuracy == 0.9


def test_a_checkpoint_of_format_1_is_read(folder: Path) -> None:
    document = json.loads((folder / INFO_FILE).read_bytes()) | {"format": 1}
    del document["history"]
    for name in ("balanced_accuracy", "confusion"):
        del document["metrics"][name]
    (folder / INFO_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="expected the metadata"):
        read(folder)  # its tensors say format 2
    arrays = safetensors.load((folder / TENSORS_FILE).read_bytes())
    bond = {"format": 1, "backbone_weights_digest": document["backbone"]["weights_digest"]}
    data = safetensors.save(arrays, {"da3": canonical_json(bond).decode()})
    (folder / TENSORS_FILE).write_bytes(data)
    document["tensors_sha256"] = digest.sha256(data)
    (folder / INFO_FILE).write_text(json.dumps(document))
    info = load_checkpoint(folder, stripes.model()).info
    assert (info.format, info.history) == (1, None)
    assert (info.metrics.confusion, info.metrics.balanced_accuracy) == ((), None)


def test_the_same_domain_is_the_same_bytes(tmp_path: Path, model: AttachedModel) -> None:
    """Law: a checkpoint's bytes are a function of its content."""
    for name in ("one", "two"):
        keep(tmp_path / name, model)
    for name in (INFO_FILE, TENSORS_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_model_is_restored_from_the_folder_and_its_backbone(
    folder: Path, model: AttachedModel
) -> None:
    again, checkpoint = restore(folder, backbone=toys.backbone("plain"))
    images = toys.pictures("plain", 4)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert checkpoint.info.method == "da3"


def test_batch_norms_counters_are_no_slots(tmp_path: Path) -> None:
    options: dict[str, Any] = {"norm": "batch", "rank": 4}
    model = toys.attached("plain", **options)
    keep(tmp_path / "out", model)
    assert not any("num_batches" in name for name in read(tmp_path / "out").tensors)
    load_checkpoint(tmp_path / "out", toys.attached("plain", **options))


def test_a_checkpoint_is_read_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from toolchain.training.adapt.checkpoint import read;"
        f"read(Path({str(folder)!r}));"
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_becomes_a_model(tmp_path: Path) -> None:
    model = build(stripes.RECIPE, classes=3, backbone=toys.backbone("plain"))
    assert model.method == "da3"
    assert model.options == stripes.RECIPE.adaptor
    assert model.anatomy.input_shape == (3, stripes.SIDE, stripes.SIDE)


def test_another_backbone_is_refused_with_both_digests(folder: Path) -> None:
    other = stripes.model(seed=4)
    before = {name: tensor.clone() for name, tensor in domain_state(other).items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, other)
    assert weights_digest(stripes.model()) in caught.value.message
    assert weights_digest(other) in caught.value.message
    assert all(torch.equal(t, before[n]) for n, t in domain_state(other).items())


def test_equal_weights_in_other_code_are_refused(folder: Path) -> None:
    """Else a bundle would tell the accuracy of a net that nobody runs any more."""
    edited = stripes.model()
    edited.backbone.get_submodule("stem").register_forward_hook(lambda _, __, y: y.abs().sqrt())
    before = {name: tensor.clone() for name, tensor in domain_state(edited).items()}
    assert weights_digest(edited) == weights_digest(stripes.model())
    with pytest.raises(CheckpointError, match="with its weights that computes otherwise") as caught:
        load_checkpoint(folder, edited)
    assert "train the domain again" in caught.value.fix
    assert all(torch.equal(t, before[n]) for n, t in domain_state(edited).items())


def test_a_checkpoint_without_a_witness_is_read_as_before(folder: Path) -> None:
    def older(document: dict[str, Any]) -> dict[str, Any]:
        del document["backbone"]["witness"]
        return document

    rewrite(folder, info=older)
    edited = stripes.model()
    edited.backbone.get_submodule("stem").register_forward_hook(lambda _, __, y: y.abs().sqrt())
    assert load_checkpoint(folder, edited).info.backbone.witness == ()


def test_missing_extra_and_misshapen_slots_are_named_at_once(folder: Path) -> None:
    def change(arrays: Arrays) -> Arrays:
        del arrays["head.bias"]
        arrays["stray.weight"] = np.zeros(3, np.float32)
        arrays["block00.gate.bias"] = np.zeros(2, np.float32)
        return arrays

    rewrite(folder, tensors=change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, stripes.model())
    assert "missing: head.bias" in caught.value.message
    assert "extra: stray.weight" in caught.value.message
    assert "block00.gate.bias (expected [1], got [2])" in caught.value.message


def test_wrong_dtypes_and_values_are_named_at_once(folder: Path) -> None:
    def change(arrays: Arrays) -> Arrays:
        arrays["head.bias"] = arrays["head.bias"].astype(np.float16)
        arrays["head.weight"] = np.full_like(arrays["head.weight"], np.nan)
        arrays["block00.gate.bias"] = np.full(1, np.inf, np.float32)
        return arrays

    rewrite(folder, tensors=change)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "not float32: head.bias (float16)" in caught.value.message
    assert "NaN or Inf): head.weight" in caught.value.message.replace("block00.gate.bias, ", "")


def test_many_faulty_slots_are_counted(folder: Path) -> None:
    rewrite(folder, tensors=lambda _: {f"x{i}": np.zeros(1, np.float32) for i in range(40)})
    with pytest.raises(CheckpointError, match="and 32 more"):
        load_checkpoint(folder, stripes.model())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda d: d | {"format": 3}, "format"),
        (lambda d: d | {"method": "da4"}, "method"),
        (lambda d: d | {"extra": 1}, "extra"),
        (lambda d: {k: v for k, v in d.items() if k != "classes"}, "classes"),
        (lambda d: d | {"classes": ["a", 3]}, r"classes\[1\]"),
        (lambda d: d | {"metrics": d["metrics"] | {"accuracy": 1.5}}, r"metrics\.accuracy"),
        (
            lambda d: d | {"metrics": d["metrics"] | {"gate_rates": {"b": 2}}},
            r"metrics\.gate_rates\.b",
        ),
        (lambda d: d | {"metrics": d["metrics"] | {"gate_rates": 3}}, r"metrics\.gate_rates"),
        (
            lambda d: d | {"metrics": d["metrics"] | {"confusion": [[0, 3, 1]]}},
            r"metrics\.confusion: expected classes below 3",
        ),
        (
            lambda d: d | {"history": {"epochs": [EPOCH, EPOCH], "epoch": 3, "validation": 0}},
            r"history\.epoch: expected at most 2",
        ),
        (lambda d: d | {"tensors_sha256": "sha256:12"}, "tensors_sha256"),
        (lambda d: d | {"options": d["options"] | {"rank": "many"}}, r"options\.rank"),
        (lambda d: [d], "top"),
    ],
)
def test_json_faults_carry_their_key_path(
    folder: Path, change: Callable[[Any], object], path: str
) -> None:
    rewrite(folder, info=change)
    with pytest.raises(CheckpointError, match=path):
        read(folder)


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / INFO_FILE).write_bytes(text)
    with pytest.raises(CheckpointError, match=INFO_FILE):
        read(folder)


def test_every_flipped_bit_of_the_tensors_is_found(folder: Path) -> None:
    path = folder / TENSORS_FILE
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="expected sha256:"):
            read(folder)


def test_tensors_of_another_training_are_refused(folder: Path, tmp_path: Path) -> None:
    keep(tmp_path / "other", toys.scrambled(stripes.model(), 5))
    (folder / TENSORS_FILE).write_bytes((tmp_path / "other" / TENSORS_FILE).read_bytes())
    with pytest.raises(CheckpointError, match="another training"):
        read(folder)


def test_tensors_without_their_bond_are_refused(folder: Path) -> None:
    rewrite(folder, bond=False)
    with pytest.raises(CheckpointError, match="expected the metadata"):
        read(folder)


def test_a_file_that_is_no_safetensors_is_refused_even_with_its_digest(folder: Path) -> None:
    (folder / TENSORS_FILE).write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    document = json.loads((folder / INFO_FILE).read_bytes())
    document["tensors_sha256"] = digest.sha256((folder / TENSORS_FILE).read_bytes())
    (folder / INFO_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="safetensors"):
        read(folder)


def test_missing_and_oversized_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read(tmp_path / "nowhere")
    with (folder / INFO_FILE).open("wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(StorageError, match="at most"):
        read(folder)


def test_nothing_is_left_of_a_refused_save(tmp_path: Path, model: AttachedModel) -> None:
    with torch.no_grad():
        model.domain.get_parameter("head.bias")[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        keep(tmp_path / "out", model)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_asked(folder: Path, model: AttachedModel) -> None:
    before = (folder / TENSORS_FILE).read_bytes()
    with pytest.raises(ExistsError):
        keep(folder, model)
    toys.scrambled(model, 8)
    keep(folder, model, overwrite=True)
    assert (folder / TENSORS_FILE).read_bytes() != before
    assert sorted(path.name for path in folder.iterdir()) == [INFO_FILE, TENSORS_FILE]


def test_write_refuses_what_is_no_domain(folder: Path, tmp_path: Path) -> None:
    checkpoint = read(folder)
    with pytest.raises(CheckpointError, match="not float32: x"):
        write(tmp_path / "out", checkpoint.info, {"x": np.zeros(2)})


@pytest.mark.parametrize("shape", [[3, 1, 1], [3, 4096, 4096], [1, 16, 16]])
def test_a_shape_that_its_pictures_do_not_have_is_refused(
    folder: Path, model: AttachedModel, shape: list[int]
) -> None:
    document = json.loads((folder / INFO_FILE).read_text())
    document["backbone"]["input_shape"] = shape
    (folder / INFO_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="input_shape"):
        restore(folder, backbone=toys.backbone("plain"))
    with pytest.raises(CheckpointError, match="input_shape"):
        load_checkpoint(folder, model)
