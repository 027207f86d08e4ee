"""The bench of real pictures: its sets, its recipes and its figures, at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import natural, results
from toolchain.recipe import load, scaffold

FIGURES = {"accuracy": 0.9, "head_accuracy": 0.8, "executed_share": 0.7, "decide": 0.5}


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A folder like that of the package with solar cells: 60 grey pictures of two kinds."""
    folder = tmp_path / "cells"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(60):
        name, probability = f"images/cell{number:04d}.png", (0.0, 1 / 3, 2 / 3, 1.0)[number % 4]
        Image.new("L", (30, 30), int(200 * probability) + number % 50).save(folder / name)
        lines.append(f"{name}  {probability:.16f}  {('mono', 'poly')[number // 4 % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_one_command_makes_sets_trains_and_writes_figures(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natural, "BACKBONE", "resnet20")
    monkeypatch.setattr(natural, "SIDE", 32)
    monkeypatch.setattr(scaffold, "STEPS", 1)
    out = tmp_path / "natural.json"
    words = ["--cells", str(cells), "--sets", "cells4", "--methods", "da3,head", "--seeds", "1"]
    words += ["--jobs", "1", "--work", str(tmp_path / "work"), "--out", str(out)]
    words += ["--results", str(tmp_path / "results.md")]
    words += ["--picture", str(tmp_path / "gates.svg")]
    done = CliRunner().invoke(natural.main, words)
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert (document["finished"], document["failed"]) == (2, {})
    assert 0 < document["summary"]["executed_share"] <= 1
    assert document["summary"]["da3_minus_static"] is None
    assert results.NATURAL in (tmp_path / "results.md").read_text()
    shown = ElementTree.fromstring((tmp_path / "gates.svg").read_text())
    words = ["".join(text.itertext()) for text in shown.iter("{http://www.w3.org/2000/svg}text")]
    (run,) = (run for run in document["runs"] if run["method"] == "da3")
    assert set(run["gate_rates"]) <= {*words}
    recipe = load(tmp_path / "work" / "recipes" / "cells4.yaml")
    folders = Path(recipe.data.root or "").iterdir()
    parts = {folder.name: len(list(folder.glob("*/*"))) for folder in folders}
    assert sum(parts.values()) == 60
    assert parts["train"] > parts["test"] > 0


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    words = ["--cells", str(tmp_path), "--sets", "cells2", "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(natural.main, words)
    assert "labels.csv" in str(done.exception)


def test_figures_are_means_over_pairs() -> None:
    def run(domain: str, method: str, seed: int, **changes: float) -> dict[str, object]:
        return {**FIGURES, "domain": domain, "method": method, "seed": seed, **changes}

    runs = [
        run("a", "da3", 0),
        run("a", "da3", 1, accuracy=0.92),
        run("b", "da3", 0, accuracy=0.79),
        run("a", "finetune", 0, accuracy=0.95),
        run("b", "static", 0, accuracy=0.70),
    ]
    summary = natural.summary({"runs": [*runs, {"domain": "b", "method": "finetune", "seed": 0}]})
    assert summary["da3_minus_head"] == pytest.approx((10 + 12 - 1) / 3)
    assert summary["da3_minus_head_least"] == pytest.approx(-1)
    assert summary["da3_minus_finetune"] == pytest.approx(-5)
    assert summary["da3_minus_static"] == pytest.approx(9)
    assert summary["da3_minus_random"] is None
    assert (summary["dynamic_gates_share"], summary["executed_share"]) == (0.5, pytest.approx(0.7))
