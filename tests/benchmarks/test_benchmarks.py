"""The benchmarks at toy size: they run, and they answer alike; nothing here looks at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import export, plot, results, samples, second
from benchmarks.forms import Case, FormBench
from benchmarks.joins import REJECTED
from tests.support import toys
from tests.support.exported import search_path
from toolchain.bench import machine
from toolchain.bench.latency import STATES
from toolchain.core.timing import interleaved
from toolchain.device.runtime.ort.backend import LinkedModel

# Square, and its corrections are coarser than its maps: there is a Resize to rewrite.
TOY = Case("plain", lambda: toys.backbone("plain"), 12, toys.CLASSES)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FormBench]:
    with FormBench(TOY, cache=tmp_path_factory.mktemp("cache")) as opened:
        generator = np.random.default_rng(0)
        for name, value in opened.slots.items():
            opened.slots[name] = generator.normal(0, 0.4, value.shape).astype(np.float32)
        yield opened


def logits(bench: FormBench, runner: LinkedModel, state: str, batch: int = 1) -> Any:
    return runner.run(bench.images(batch), bench.state(state)).logits


def test_states_set_the_gates_they_say(bench: FormBench) -> None:
    swap = bench.swap("if")
    gates = {s: swap.run(bench.images(1), bench.state(s)).gates[0] >= 0 for s in STATES}
    assert gates["open"].tolist() == [True, True]
    assert gates["half"].tolist() == [True, False]
    assert gates["closed"].tolist() == [False, False]


def test_floors_fall_with_the_blocks_that_close(bench: FormBench) -> None:
    floors = [bench.floor(state) for state in STATES]
    assert floors[0] == 1.0
    assert 0 < floors[2] < floors[1] < floors[0]


@pytest.mark.parametrize("state", STATES)
def test_every_timed_form_answers_alike(bench: FormBench, state: str) -> None:
    want = logits(bench, bench.swap("if"), state)
    for runner in (bench.swap("rows"), bench.static(state)):
        np.testing.assert_allclose(logits(bench, runner, state), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REJECTED)
def test_forms_that_lost_answer_alike(bench: FormBench, name: str) -> None:
    swap, rejected = bench.swap("if"), bench.rejected(REJECTED[name])
    for state in STATES:
        np.testing.assert_allclose(
            logits(bench, rejected, state), logits(bench, swap, state), rtol=1e-4, atol=1e-5
        )


def test_interleaved_compares_with_the_first_contender() -> None:
    timings = interleaved({"a": lambda: sum(range(200)), "b": lambda: sum(range(2000))}, rounds=3)
    assert timings["a"].ratio == 1.0
    assert timings["a"].rounds == timings["b"].rounds == 3
    low, high = timings["b"].ratio_quartiles
    assert low <= timings["b"].ratio <= high


@pytest.fixture(scope="module")
def document(toy_backbone: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole document, from real runs of every part at toy size."""
    folder = tmp_path_factory.mktemp("bench")
    speed = export.measure_speed(TOY, {"one": 2, "many": 2, "lost": 2}, folder / "cache")
    setup = second.SecondSetup(backbone="toy", side=12, classes=6, test=6, runs=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in search_path().items():
            patch.setenv(name, value)
        other = second.measure(folder / "second", setup)
    checkpoint = folder / "second" / "domains" / "second"
    ratios = {f"{state}_ratio": speed["one"][f"if {state}"]["ratio"] for state in STATES}
    return {
        **ratios,
        "second_domain_s": other["second_domain_s"],
        "bundle_ratio": other["bundle_ratio"],
        "samples": {"cars": samples.figures(checkpoint), "digits": None},
        "targets": export.GOALS,
        "clock": "thread_time",
        "machine": machine.machine() | {"load_after": 0.0},
        "versions": machine.versions(),
        "resnet50": speed,
        "resnet20": speed,
        "second": other,
    }


def test_a_second_domain_reuses_the_backbone(document: dict[str, Any]) -> None:
    own = document["second"]
    assert own["backbone_reused"] is True
    assert own["bundle_bytes"] > 0
    assert {"restore", "split", "link", "check", "pack"} <= set(own["seconds"])


def test_the_document_survives_json_and_becomes_tables_and_a_plot(
    document: dict[str, Any], tmp_path: Path
) -> None:
    copy = json.loads(json.dumps(document))
    text = results.text(copy)
    assert all(f"`{key}`" in text for key in copy["targets"])
    assert "not trained" in text
    assert results.summary(copy).count("\n") == len(copy["targets"]) + 1
    plot.draw(copy, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_samples_without_training_are_none(tmp_path: Path) -> None:
    assert samples.read(tmp_path, training=False) == dict.fromkeys(samples.SAMPLES)


def test_the_samples_section_alone_is_replaced(document: dict[str, Any], tmp_path: Path) -> None:
    tables = tmp_path / "results.md"
    tables.write_text(results.text(document))
    words = ["--domains", str(tmp_path), "--results", str(tables), "--no-train"]
    result = CliRunner().invoke(samples.main, words)
    assert result.exit_code == 0, result.output
    untrained = {**document, "samples": dict.fromkeys(samples.SAMPLES)}
    assert tables.read_text().rstrip() == results.text(untrained).rstrip()
