"""``da3 train``: what could never be packed is refused before the first step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as arrays
from safetensors.torch import save_file

from tests.support import exported
from tests.support.toy_export import invoke, write_recipe
from toolchain.core.digest import sha256
from toolchain.recipe import dump, load
from toolchain.training.loop.identity import training_document

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


# Each line of standard input is a command; what it says goes to stdout, and at last what it took.
COMMANDS = """
import contextlib, sys
from toolchain.cli import root
for line in sys.stdin:
    with contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
        root.main(args=line.split(), prog_name="da3")
print(sorted({"torch", "onnx"} & set(sys.modules)))
"""
REFUSALS = {
    "--domain toy --set backbone=resnet21": "unknown backbone 'resnet21'",
    "--domain toy --set backbone=resnet50": "expected a weights file, got none",
    "--domain toy --set backbone=efficientnet_lite0": "da3 backbones fetch efficientnet_lite0",
    "--domain toy": "expected no half-done training",
    "--domain toy --resume --set train.lr=0.5": "train.lr: 0.01 then, 0.5 now",
    "--domain toy --resume --method head": "expected a training to resume",
    "--domain toy --overwrite --set train.class_weights=[1,2]": "each of 8 classes, got 2",
    "--domain toy --overwrite --set train.validation=0.001": "for the validation part, got none",
    "--domain toy --overwrite --device gpu": "expected the device cpu, cuda or cuda:N, got 'gpu'",
    "--domain toy --overwrite --budget 64Q": "expected a size such as 64MB",
    "--domain toy --out recipes": "expected no checkpoint at recipes",
    "--domain toy --out recipes --resume": "got a finished one at recipes",
}


def test_what_can_be_refused_without_pytorch_is_refused_before_it_starts(tmp_path: Path) -> None:
    """PyTorch takes seconds to start, the export for trial ten more."""
    (tmp_path / "recipes").mkdir()
    recipe = load(write_recipe(tmp_path / "recipes"))
    state = tmp_path / "build" / "domains" / "toy.training.safetensors"
    state.parent.mkdir(parents=True)
    note = json.dumps({"identity": training_document(recipe)})
    arrays.save_file({"x": np.zeros(1, np.float32)}, state, {"da3": note})
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input="".join(f"train {words}\n" for words in REFUSALS),
        cwd=tmp_path,
        # Nobody has fetched weights there.
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [words for words, says in REFUSALS.items() if says not in done.stdout] == []
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("error: ") == len(REFUSALS)


def test_a_budget_that_holds_nothing_is_refused_before_the_export_for_trial(
    toy_backbone: None, tmp_path: Path
) -> None:
    exported.write_recipe(tmp_path)
    with chdir(tmp_path):
        result = invoke("train", "--recipe", "toy.yaml", "--threads", "1", "--budget", "10kB")
    assert result.exit_code == 1
    assert "fix: give it" in result.stderr
    assert "export it untrained" not in result.stderr
