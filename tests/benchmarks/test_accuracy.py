"""The accuracy table at toy size: what is trained, what is kept, what the table says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import toolchain
from benchmarks import accuracy, results
from benchmarks.accuracy import Entry, Run
from tests.support import stripes, toys
from toolchain.recipe import METHODS, AdaptorOptions, dump, find, load
from toolchain.training.loop.identity import recipe_digest

DOMAINS = ("cars", "cells")


def entry(value: float, *, gated: bool = False, code: str = "") -> Entry:
    figures = {"accuracy": value, "executed_share": 0.5, "gated": gated, "trained": 10}
    figures |= {"balanced_accuracy": value / 2, "decide": 0.75}
    figures |= {"kept_bytes": 1 << 20, "needed_bytes": 3 << 20}
    return {**figures, "seconds": 2.0, "code": code, "processor": "P", "cores": 2}


def test_a_seed_is_whole_before_the_next_one_starts() -> None:
    runs = accuracy.plan(METHODS, DOMAINS, 3)
    assert len(set(runs)) == len(runs) == 3 * len(METHODS) * len(DOMAINS)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.method for run in runs[:6]} == set(accuracy.FIRST)


def test_a_changed_recipe_has_the_options_that_its_method_has() -> None:
    recipe = load(find("cars"))
    da2, finetune = (accuracy.changed(recipe, method, 2) for method in ("da2", "finetune"))
    assert da2.adaptor == recipe.adaptor
    assert finetune.adaptor == AdaptorOptions()
    assert finetune.train.seed == 2
    assert finetune.train.epochs == recipe.train.epochs
    assert accuracy.changed(recipe, recipe.method, recipe.train.seed) == recipe
    assert len({recipe_digest(one) for one in (recipe, da2, finetune)}) == 3


@pytest.mark.parametrize("method", ["da3", "sparse"])
def test_a_run_is_a_training_and_keeps_figures_alone(method: str) -> None:
    recipe = accuracy.changed(stripes.recipe(epochs=1), method, 1)
    figures = accuracy.train_one(recipe, stripes.data(), toys.backbone("plain"))
    assert json.loads(json.dumps(figures)) == figures
    assert 0 < figures["accuracy"] <= 1
    assert figures["steps"] == 90 // recipe.train.batch
    assert figures["gated"] is (method == "da3")
    assert figures["trained"] > 3 * 16 + 3


def test_code_is_compared_without_its_words() -> None:
    code = 'def f():\n    """Say."""\n    return 1\n'
    assert accuracy._bare(code) == accuracy._bare("def f():  # a\n    return 1")
    assert accuracy._bare(code) != accuracy._bare("def f():\n    return 2")


def test_rows_are_means_over_seeds_and_pairs() -> None:
    runs = accuracy.plan(("da3", "finetune", "head"), DOMAINS, 2)
    entries = {
        Run("cars", "da3", 0): entry(0.90, gated=True),
        Run("cars", "da3", 1): entry(0.96, gated=True),
        Run("cells", "da3", 0): entry(0.80, gated=True),
        Run("cars", "finetune", 1): entry(0.97),
        Run("cells", "finetune", 0): entry(0.83),
        Run("cells", "finetune", 1): {**entry(0), "error": "TrainingError: no"},
    }
    document = accuracy.document(entries, runs)
    da3, finetune = document["rows"]
    assert (da3["method"], finetune["method"]) == ("da3", "finetune")
    assert da3["domains"]["cars"] == {
        "mean": pytest.approx(0.93),
        "spread": pytest.approx(0.06),
        "balanced": pytest.approx(0.93 / 2),
        "seeds": 2,
    }
    assert da3["average"] == pytest.approx((0.93 + 0.80) / 2)
    assert da3["balanced"] == pytest.approx(da3["average"] / 2)
    assert da3["needed_bytes"] == 3 << 20
    assert da3["against_finetune"] == pytest.approx((-1 - 3) / 2)
    assert (da3["executed_share"], finetune["executed_share"]) == (0.5, None)
    assert (document["finished"], document["planned"], document["older_code"]) == (5, 12, 5)
    assert document["failed"] == {"cells-finetune-1.json": "TrainingError: no"}


@pytest.mark.parametrize("pattern", accuracy.TRAINED_BY)
def test_the_code_that_trains_is_where_its_digest_looks(pattern: str) -> None:
    assert list(Path(toolchain.__file__).parent.glob(pattern))


def test_an_average_waits_for_every_domain() -> None:
    runs = accuracy.plan(("da3", "finetune"), DOMAINS, 1)
    document = accuracy.document({runs[0]: entry(0.9, code=accuracy.code_digest())}, runs)
    (row,) = document["rows"]
    assert row["average"] is None
    assert row["against_finetune"] is None
    assert row["domains"]["cells"] is None
    text = "\n".join(results.accuracy(document))
    assert "1 of 4 runs." in text
    assert "| `da3` | 90.0 (0.0) |  |" in text


headings = st.sampled_from(["# Results", "# Other", results.ACCURACY, results.ENGINES])


@given(parts=st.lists(headings, unique=True, max_size=4), words=st.text("ab\n#", max_size=9))
def test_a_section_replaces_its_own_and_no_other(parts: list[str], words: str) -> None:
    """Law: placing twice is placing once, and every other section keeps its words."""
    whole = "\n".join(f"{part}\n\nold {part[2:]}\n" for part in parts)
    new = [results.ACCURACY, "", f"new {words}"]
    once = results.placed(whole, new)
    assert results.placed(once, new) == once
    others = [part[2:] for part in parts if part != results.ACCURACY]
    assert [line[4:] for line in once.splitlines() if line.startswith("old ")] == others
    assert once.count(results.ACCURACY) == 1
    if results.ENGINES in parts and results.ACCURACY not in parts:
        assert once.index(results.ACCURACY) < once.index(results.ENGINES)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Cells with 24 pictures for one epoch; cars on a backbone that ships no weights."""
    small = {"train: 4400": "train: 24", "test: 1000": "test: 16", "epochs: 10": "epochs: 1"}
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in DOMAINS:
        text = dump(load(find(name)))
        for old, new in small.items():
            assert old in text
            text = text.replace(old, new)
        if name == "cars":
            text = text.replace("resnet20", "resnet50")
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_run_that_fails_is_told_and_wanted_again(recipes: Path, tmp_path: Path) -> None:
    run = Run("cars", "head", 0)
    figures = accuracy._work(run, (recipes,))
    assert figures["error"].startswith("WeightsError: ")
    (tmp_path / run.file).write_text(json.dumps(figures))
    entries = accuracy.read(tmp_path, [run], [recipes])
    assert entries == {run: figures}
    assert accuracy.missing([run], entries) == [run]


def test_figures_of_another_recipe_do_not_count(recipes: Path, tmp_path: Path) -> None:
    run = Run("cells", "head", 0)
    whole = accuracy.stamp(run, load(find("cells"))) | entry(0.5)
    (tmp_path / run.file).write_text(json.dumps(whole))
    assert accuracy.missing([run], accuracy.read(tmp_path, [run])) == []
    assert accuracy.missing([run], accuracy.read(tmp_path, [run], [recipes])) == [run]


def test_a_second_call_trains_nothing(recipes: Path, tmp_path: Path) -> None:
    tables = tmp_path / "results.md"
    tables.write_text("# Results\n\nwords\n")
    options = ["--methods", "head", "--domains", "cells", "--seeds", "1", "--jobs", "1"]
    options += ["--out", str(tmp_path / "accuracy.json"), "--results", str(tables)]
    options += ["--recipes", str(recipes)]
    progress = []
    for _ in range(2):
        result = CliRunner().invoke(accuracy.main, options, catch_exceptions=False)
        assert result.exit_code == 0
        progress.append(result.stderr)
    assert progress[0].startswith("1/1 seed 0 head cells: ")
    assert progress[1] == ""
    assert tables.read_text().startswith("# Results\n\nwords\n\n# Accuracy")
    assert "1 of 1 runs" in tables.read_text()
