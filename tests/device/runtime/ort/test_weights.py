"""Domains that change the backbone: the weights that they run on, their sessions, and attacks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from tests.support.damage import repacked
from tests.support.drawn import same, tensor
from tests.support.exported import Exported, Fleet
from toolchain import bundle
from toolchain.bundle.patch import PATCH_NAME
from toolchain.bundle.release import patch_of
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, SelftestError, SessionLimitError, StorageError
from toolchain.device import Runner
from toolchain.device.runtime.ort.weights import weights_folder
from toolchain.device.store.layout import BUNDLE_NAME, RECORD_NAME

CHANGED = ("tuned", "masked", "normed", "beside")


def reference(exported: Exported, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What PyTorch answers with the trained model, its own tensors in their places."""
    model = exported.domain.model.eval()
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model(torch.from_numpy(images)).numpy()
    return logits


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, which is empty again in the end."""
    made = tmp_path / "scratch"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    assert list(made.iterdir()) == []


@pytest.mark.parametrize(("flavour", "form"), [("swap", "if"), ("swap", "rows"), ("static", "if")])
@pytest.mark.parametrize("name", CHANGED)
def test_every_flavour_answers_as_pytorch_with_the_domains_own_tensors(
    artefact: Path, fleet: Fleet, scratch: Path, name: str, flavour: Any, form: Any
) -> None:
    images = tensor(3, 1)
    expected = reference(fleet[name], images)
    with Runner(artefact, flavour=flavour, form=form) as runner:
        runner.load(fleet[name].bundle)
        assert np.allclose(runner.infer(images).logits, expected, atol=1e-4 * np.ptp(expected))


def test_weights_are_written_for_a_session_and_gone_after_it(
    artefact: Path, fleet: Fleet, scratch: Path
) -> None:
    package = bundle.open_bundle(fleet["tuned"].bundle)
    opened = bundle.open_backbone(artefact)
    with weights_folder(opened, None) as folder:
        assert folder == artefact
    with weights_folder(opened, patch_of(package)) as folder:
        assert folder.parent == scratch
        written = (folder / "weights.safetensors").read_bytes()
        assert folder.stat().st_mode & 0o077 == 0
    assert package.manifest.patch is not None
    assert sha256(written) == package.manifest.patch.digest
    assert bundle.open_backbone(artefact) == opened


def test_a_changed_backbone_is_a_session_of_its_own(artefact: Path, fleet: Fleet) -> None:
    """Others never see its weights, whatever was loaded and let go before."""
    images = tensor(3, 2)
    with Runner(artefact, sessions=3) as runner:
        assert runner.load(fleet["tuned"].bundle).session == 0
        assert runner.load(fleet["head"].bundle).session == 1
        assert runner.load(fleet["masked"].bundle).session == 2
        for name in ("tuned", "masked", "head"):
            outcome, expected = runner.infer(images, f"toy_{name}"), reference(fleet[name], images)
            assert np.allclose(outcome.logits, expected, atol=1e-4 * np.ptp(expected))
        head = runner.infer(images, "toy_head").logits
        runner.unload("toy_tuned")
        runner.unload("toy_masked")
        assert runner.facts.sessions == 1
        assert same(runner.infer(images, "toy_head").logits, head)


@pytest.mark.parametrize(("first", "second"), [("tuned", "head"), ("head", "tuned")])
def test_a_session_that_was_left_is_not_taken_by_a_domain_of_other_weights(
    runner: Runner, fleet: Fleet, first: str, second: str
) -> None:
    runner.load(fleet[first].bundle)
    runner.unload(f"toy_{first}")
    assert runner.load(fleet[second].bundle).session == 1
    images = tensor(2, 3)
    expected = reference(fleet[second], images)
    assert np.allclose(runner.infer(images).logits, expected, atol=1e-4 * np.ptp(expected))
    assert runner.facts.sessions == 1


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("first", "tuned", "it changes 16 of 16 tensors of the backbone"),
        ("tuned", "masked", "it changes 8 of 16 tensors of the backbone"),
        ("tuned", "head", "the session's backbone is changed for another domain"),
    ],
)
def test_what_a_further_session_costs_is_told(
    runner: Runner, fleet: Fleet, first: str, second: str, told: str
) -> None:
    runner.load(fleet[first].bundle)
    with pytest.raises(SessionLimitError, match=rf"\({told}\); one more .* MiB") as caught:
        runner.load(fleet[second].bundle)
    assert "sessions=2" in caught.value.fix
    assert "da3 or da2" in caught.value.fix
    assert runner.facts.sessions == 1


def test_domains_with_the_same_patched_weights_share_a_session(
    runner: Runner, fleet: Fleet
) -> None:
    assert runner.load(fleet["masked"].bundle, name="one").session == 0
    assert runner.load(fleet["masked"].bundle, name="two").session == 0
    assert runner.facts.sessions == 1


# Installed domains


@pytest.mark.parametrize("name", CHANGED)
def test_an_installed_domain_brings_its_patch(
    artefact: Path, fleet: Fleet, tmp_path: Path, scratch: Path, name: str
) -> None:
    images = tensor(3, 4)
    with Runner(artefact) as runner:
        runner.install(fleet[name].bundle, tmp_path / "installed")
        runner.load(fleet[name].bundle)
        expected = runner.infer(images).logits
    with Runner(artefact) as runner:
        assert "selftest" not in runner.load(tmp_path / "installed").seconds
        assert same(runner.infer(images).logits, expected)


def test_a_record_that_loses_its_patch_is_found_by_the_self_test(
    artefact: Path, fleet: Fleet, tmp_path: Path
) -> None:
    """The record is sealed again: it was tested on other weights than those of the backbone."""
    with Runner(artefact) as runner:
        runner.install(fleet["tuned"].bundle, tmp_path / "installed")
        path = tmp_path / "installed" / RECORD_NAME
        record = json.loads(path.read_bytes().partition(b"\n")[2])
        del record["patch"]
        body = json.dumps(record).encode()
        path.write_bytes(f"{sha256(body)}\n".encode() + body)
        with pytest.raises(SelftestError):
            runner.load(tmp_path / "installed")
        assert runner.domains == {}


def test_a_record_with_another_patch_is_refused(
    artefact: Path, fleet: Fleet, tmp_path: Path
) -> None:
    with Runner(artefact) as runner:
        runner.install(fleet["tuned"].bundle, tmp_path / "installed")
        path = tmp_path / "installed" / RECORD_NAME
        record = json.loads(path.read_bytes().partition(b"\n")[2])
        record["patch"]["masks"] = 1
        body = json.dumps(record).encode()
        path.write_bytes(f"{sha256(body)}\n".encode() + body)
    with Runner(artefact) as runner:
        with pytest.raises(BundleError, match="the patch that the record tells of") as caught:
            runner.load(tmp_path / "installed")
        assert BUNDLE_NAME in caught.value.message


# Attacks: every digest around the patch is right


def resealed(
    exported: Exported, folder: Path, edit: Callable[[dict[str, Any]], None], **fields: Any
) -> Path:
    """The bundle with its patch edited, and with what the manifest says of it replaced."""
    tensors = load(bundle.open_bundle(exported.bundle).blob(PATCH_NAME))
    edit(tensors)

    def change(manifest: bundle.Manifest) -> bundle.Manifest:
        assert manifest.patch is not None
        return replace(manifest, patch=replace(manifest.patch, **fields))

    return repacked(exported, folder, {PATCH_NAME: save(tensors)}, change)


def unknown_tensor(tensors: dict[str, Any]) -> None:
    tensors["backbone.none.weight"] = tensors.pop(min(tensors))


def short_mask(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)][:-1].copy()


def one_bit_less(tensors: dict[str, Any]) -> None:
    mask = tensors[min(tensors)]
    mask[np.flatnonzero(mask)[0]] = 0


ATTACKS = {
    "unknown_tensor": (unknown_tensor, "a name that it has not"),
    "short_mask": (short_mask, "bytes for a mask of"),
    "one_bit_less": (one_bit_less, "expected the patched weights"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_patch_that_does_not_fit_is_refused_and_the_others_go_on(
    runner: Runner, fleet: Fleet, tmp_path: Path, scratch: Path, name: str
) -> None:
    runner.load(fleet["first"].bundle)
    before = runner.infer(tensor(2)).logits
    edit, message = ATTACKS[name]
    path = resealed(fleet["masked"], tmp_path, edit)
    with Runner(fleet["first"].backbone) as other:
        with pytest.raises(BundleError, match=message) as caught:
            other.load(path)
        assert caught.value.exit_code == 4
        assert (other.domains, other.facts.sessions) == ({}, 0)
    assert same(runner.infer(tensor(2)).logits, before)


def test_a_patch_that_was_sealed_again_fails_its_self_test(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    """Bytes and digests are right, but the golden answers are those of other weights."""
    package = bundle.open_bundle(fleet["masked"].bundle)
    tensors = load(package.blob(PATCH_NAME))
    for mask in tensors.values():
        mask[:-1] ^= 255
    assert package.manifest.patch is not None
    base = bundle.open_backbone(fleet["masked"].backbone).weights()
    with pytest.raises(BundleError) as caught:
        bundle.apply_patch(base, package.manifest.patch, save(tensors))
    digest = caught.value.message.rpartition(" ")[2]
    path = resealed(fleet["masked"], tmp_path, lambda t: t.update(tensors), digest=digest)
    with pytest.raises(SelftestError):
        runner.load(path)
    assert runner.domains == {}


def test_weights_that_were_exchanged_meanwhile_are_found(fleet: Fleet, tmp_path: Path) -> None:
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    for file in fleet["tuned"].backbone.iterdir():
        (backbone / file.name).write_bytes(file.read_bytes())
    with Runner(backbone) as runner:
        weights = bytearray((backbone / "weights.safetensors").read_bytes())
        weights[-1] ^= 1
        (backbone / "weights.safetensors").write_bytes(weights)
        with pytest.raises(BundleError, match=r"weights\.safetensors: expected sha256"):
            runner.load(fleet["tuned"].bundle)
        assert runner.domains == {}


def test_no_room_for_the_patched_weights(
    runner: Runner, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="patched weights") as caught:
        runner.load(fleet["tuned"].bundle)
    assert "TMPDIR" in caught.value.fix
    monkeypatch.undo()
    assert runner.load(fleet["tuned"].bundle).name == "toy_tuned"
