"""The trial before training: what cannot be packed is refused, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.exported import Domain, Exported, make_domain
from toolchain.core.errors import Da3Error
from toolchain.export import export, rehearse
from toolchain.export.rehearsal import LIBRARIES_BYTES, need, need_line
from toolchain.training import build
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.data import ArraySplit, DomainData


def untrained(domain: Domain) -> AttachedModel:
    """The domain's model as it is before the first step, with the layers of a training."""
    net = domain.model.backbone
    return build(domain.recipe, classes=len(domain.data.classes), backbone=net, data=domain.data)


def test_the_export_after_the_training_finds_the_structure(
    exported: Exported, tmp_path: Path
) -> None:
    """What the trial captured and split is not captured and split again."""
    domain, cache = exported.domain, tmp_path / "cache"
    rehearse(untrained(domain), domain.data, domain.recipe, cache=cache)
    report = export(
        domain.recipe, checkpoint=domain.checkpoint, dist=tmp_path / "dist", cache=cache
    )
    assert report.structure_cached
    assert report.bundle.read_bytes() == exported.bundle.read_bytes()


def test_it_changes_nothing_and_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    domain = exported.domain
    model = untrained(domain)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    rehearse(model, domain.data, domain.recipe, cache=exported.cache)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], was) for name, was in before.items())
    assert all(p.requires_grad for p in model.domain.parameters())


def test_a_domain_with_tensors_of_its_own_passes(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    from toolchain.recipe import AdaptorOptions

    changes = {"adaptor": AdaptorOptions()}
    domain = make_domain(tmp_path / "tuned", name="tuned", method="finetune", changes=changes)
    rehearse(untrained(domain), domain.data, domain.recipe, cache=exported.cache)


def test_more_classes_than_a_bundle_holds_are_refused(exported: Exported) -> None:
    """A limit of the manifest, met before any training."""
    domain, count = exported.domain, 5000
    pictures = np.zeros((count, 12, 12, 3), np.uint8)
    split = ArraySplit("many/train", pictures, np.arange(count))
    data = DomainData(split, split, tuple(f"class {i}" for i in range(count)))
    model = build(domain.recipe, classes=count, backbone=domain.model.backbone, data=data)
    with pytest.raises(Da3Error, match=r"classes|manifest\.json") as caught:
        rehearse(model, data, domain.recipe, cache=exported.cache)
    assert caught.value.fix


def test_golden_data_are_as_many_as_the_recipe_asks_for(exported: Exported) -> None:
    """Their bytes are in the bundle, so a limit on them shows as well."""
    from toolchain.export.rehearsal import _golden

    domain = exported.domain
    recipe = dataclasses.replace(domain.recipe, golden=7)
    golden = _golden(untrained(domain), domain.data, recipe)
    assert int(golden.natural.sum()) == min(7, len(domain.data.train))
    states = golden.states()
    assert all(state.open and state.closed for state in states.values())
    assert states


def test_what_it_takes_is_told_in_one_line(exported: Exported) -> None:
    """`tests/training/loop/test_training.py` holds the process to the figure."""
    model = untrained(exported.domain)
    assert need(model) > LIBRARIES_BYTES
    line = need_line(model)
    assert line.startswith("export for trial, before the first step: at most 14")
    assert line.endswith("144.0 MiB stays")
