"""``da3 train``: what could never be packed is refused before the first step."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.support.toy_export import invoke, write_recipe
from toolchain.core.digest import sha256
from toolchain.recipe import dump, load

PACKAGE = """
from torch import nn
from toolchain.training.adapt.backbones import Backbone

def build():
    from tests.support import toys
    class Pooled(toys.Residual):
        def __init__(self):
            super().__init__(8, 8)
            self.pool = nn.AvgPool2d(3, 1, 1, divisor_override=5)

        def forward(self, x):
            return super().forward(self.pool(x))

    return toys.Net(toys.stem(8), [toys.Residual(8, 8), Pooled()], 8).eval()

ODD = Backbone(name="odd", title="odd", build=build, input_size=32, classifier="fc",
               licence="Apache-2.0", source="a test")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a backbone that PyTorch's exporter gets wrong, installed as pip would."""
    info = tmp_path / "odd_nets-1.0.dist-info"
    info.mkdir()
    (tmp_path / "odd_nets.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd_nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[da3.backbones]\nodd = odd_nets:ODD\n")
    monkeypatch.syspath_prepend(tmp_path)
    import odd_nets  # type: ignore[import-not-found]

    weights = tmp_path / "odd.safetensors"
    save_file(odd_nets.build().state_dict(), weights)
    path = write_recipe(tmp_path)
    digest = sha256(weights.read_bytes())
    recipe = replace(load(path), backbone="odd", weights=str(weights), weights_sha256=digest)
    path.write_text(dump(recipe), encoding="utf-8")
    return tmp_path


def test_a_net_that_cannot_be_exported_is_refused_before_the_first_step(home: Path) -> None:
    with chdir(home):
        result = invoke("train", "--recipe", "toy.yaml", "--threads", "1")
    assert result.exit_code == 1
    assert "translates 'backbone.blocks.1.pool' wrongly: AvgPool2d(" in result.stderr
    assert "fix: write 'backbone.blocks.1.pool' with other operators" in result.stderr
    assert "export it untrained, for trial" in result.stderr
    assert "epoch" not in result.stderr
    build = home / "build"
    assert not build.exists() or not any(path.is_file() for path in build.rglob("*"))
