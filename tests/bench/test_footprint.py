"""The comparison of methods' training, its plot and its tables; nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import memory, results
from tests.support import toys
from toolchain.bench import footprint, plots
from toolchain.bench.footprint import FootprintSetup, MethodBench
from toolchain.core.errors import AttachError, MemoryBudgetError, UnknownNameError, UsageError
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.lean.ledger import Stored

NAME = "resnet20"
SETUP = FootprintSetup(NAME, 32, batch=4, methods=("da3", "bias", "da3-half", "sparse"), rounds=1)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return footprint.measure(SETUP)


def test_every_row_has_every_figure(document: dict[str, Any]) -> None:
    rows = document[NAME]
    assert list(rows) == ["finetune", "da3", "bias", "da3-half", "sparse"]
    for row in rows.values():
        assert row["stored_measured"] == row["stored_analytic"]
        assert row["agreement"] == 0
        assert row["explanation"] is None
        assert 0 < row["stored_measured"] < row["peak"]
        assert 0.85 < row["peak_by_rule"] / row["peak"] < 1.5
        assert row["step_ratio"] > 0
    assert rows["finetune"]["step_ratio"] == 1
    assert rows["finetune"]["stored_stock"] == rows["finetune"]["stored_measured"]
    assert rows["da3"]["keep"] == "int8"
    assert rows["da3"]["stored_measured"] < rows["da3-half"]["stored_measured"]


def test_da3_is_timed_at_its_budget_too(document: dict[str, Any]) -> None:
    rows = document[NAME]
    # A cell is one block of one picture.
    assert rows["da3"]["executed_share"] == pytest.approx(SETUP.budget, abs=0.03)
    assert rows["da3"]["step_ratio_budget"] > 0
    assert "step_ratio_budget" not in rows["bias"]


def test_conditions_name_machine_run_and_counting(document: dict[str, Any]) -> None:
    conditions = document["conditions"]
    assert conditions["runs"][NAME]["batch"] == 4
    assert conditions["runs"][NAME]["input"] == 32
    assert "allocator" in conditions["how_peak"]
    assert "torch" in conditions["versions"]


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    footprint.measure(
        FootprintSetup(NAME, 32, batch=1, methods=("head",), rounds=0, threads=before + 1)
    )
    assert torch.get_num_threads() == before


def test_rows_are_the_methods_and_da3_in_each_precision() -> None:
    known = footprint.rows()
    assert set(known) == {*REGISTRY, "da3-fp32", "da3-half"}
    assert known["finetune"].keep is None
    assert footprint.rows_of(["all"])[0].name == "finetune"
    assert [row.name for row in footprint.rows_of(["bn"])] == ["finetune", "bn"]
    with pytest.raises(UnknownNameError, match="da4"):
        footprint.rows_of(["da4"])


@pytest.mark.parametrize("setup", [FootprintSetup(NAME, batch=0), FootprintSetup(NAME, rounds=-1)])
def test_setups_that_cannot_be_meant(setup: FootprintSetup) -> None:
    with pytest.raises(UsageError):
        footprint.measure(setup)


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
def test_gates_close_until_the_budget_is_left(budget: float) -> None:
    bench = MethodBench(footprint.load(NAME), 32, FootprintSetup(NAME, 32, batch=16))
    model = bench.attached(footprint.rows()["da3"])
    model.forced = bench.opened(model, budget)
    with torch.no_grad():
        share = model.executed_share(model.trace(bench.images, maps=False)).mean()
    assert float(share) == pytest.approx(max(budget, _least(model)), abs=0.005)


def _least(model: Any) -> float:
    gated = sum(site.flops for site in model.sites.values())
    return float(1 - gated / model.anatomy.flops)


def test_a_budget_is_answered_by_rule() -> None:
    setup = FootprintSetup(NAME, 32, batch=4, methods=("bias", "head"))
    answer = footprint.fits(setup, 3_000_000)
    best = answer["choices"][0]
    assert best["method"] == "bias"
    assert best["batch"] >= 4
    assert answer["choices"][-1]["method"] == "head"
    assert all(choice["needed"] <= 3_000_000 for choice in answer["choices"])
    with pytest.raises(MemoryBudgetError):
        footprint.fits(setup, 1000)


def test_what_disagrees_is_explained() -> None:
    measured = Stored(100, {"layer1": 60, "": 40})
    counted = Stored(40, {"": 40})
    assert footprint._explained(measured, counted) == "measured against the rules: layer1 +60 bytes"


def test_bars_end_at_the_peak(document: dict[str, Any]) -> None:
    for row in document[NAME].values():
        bars = plots.peak_parts(row)
        assert sum(bars.values()) == row["peak"]
        assert all(value >= 0 for value in bars.values())
    few = {"peak": 10, "stored_measured": 6, "optimiser": 3, "gradients": 4}
    assert list(plots.peak_parts(few).values()) == [6, 3, 1, 0]


class NamedAsStated(toys.TokenNet):
    """Its head has the name that the backbone's entry states."""

    head = property(lambda net: net.fc)

    def __init__(self) -> None:
        super().__init__(8, 16, 2)
        self.fc = self._modules.pop("head")


def test_a_method_that_the_backbone_cannot_take_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(footprint, "load", lambda _: NamedAsStated().eval())
    figures = footprint.measure(
        FootprintSetup(NAME, 16, batch=2, methods=("series", "bias"), rounds=0)
    )
    assert list(figures[NAME]) == ["finetune", "bias"]
    left_out = figures["conditions"]["runs"][NAME]["left_out"]
    assert list(left_out) == ["series"]
    assert "spatial kernel" in left_out["series"]
    with pytest.raises(AttachError, match="does not run"):
        footprint.measure(FootprintSetup(NAME, 12, batch=2, rounds=0))


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_plot_is_drawn_alike_each_time(
    document: dict[str, Any], suffix: str, start: bytes
) -> None:
    drawn = plots.training(document, NAME, suffix)
    assert drawn.startswith(start)
    assert drawn == plots.training(document, NAME, suffix)
    if suffix == ".svg":
        assert b"da3-half" in drawn


def test_a_plot_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png, got \.pdf"):
        plots.check_suffix(Path("memory.pdf"))


def test_documents_of_backbones_are_joined(document: dict[str, Any]) -> None:
    other = {
        "conditions": {**document["conditions"], "runs": {"other": {}}},
        "other": document[NAME],
    }
    joined = memory.joined(memory.joined({}, document), other)
    assert set(joined) == {"conditions", NAME, "other"}
    assert set(joined["conditions"]["runs"]) == {NAME, "other"}


def test_a_gpus_table_stays_when_the_cpu_is_measured_again(document: dict[str, Any]) -> None:
    with_gpu = {**document, "cuda": {**document, "gpu": "some GPU"}}
    joined = memory.joined(with_gpu, document)
    assert joined["cuda"]["gpu"] == "some GPU"
    assert "## resnet20, 32 px, batch 4, some GPU" in "\n".join(results.memory(joined))


def test_results_have_a_row_for_each_method(document: dict[str, Any]) -> None:
    lines = results.memory(document)
    assert lines[0] == results.MEMORY
    rows = [line for line in lines if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(document[NAME])
    whole = document[NAME]["finetune"]["stored_measured"]
    assert f"{whole / document[NAME]['da3']['stored_measured']:.1f}" in rows[1]


def test_the_benchmark_adds_its_section_to_the_results(tmp_path: Path) -> None:
    words = ["--quick", "--rounds", "0", "--out", str(tmp_path)]
    before = f"# Results\n\n{results.MEMORY}\n\nof an earlier run\n\n# TensorRT engines\n"
    (tmp_path / "memory.md").write_text(before)
    result = CliRunner().invoke(memory.main, words)
    assert result.exit_code == 0, result.output
    after = (tmp_path / "memory.md").read_text()
    assert "of an earlier run" not in after
    headings = [line for line in after.split("\n") if line.startswith("# ")]
    assert headings == ["# Results", results.MEMORY, "# TensorRT engines"]
    assert set(json.loads((tmp_path / "memory.json").read_text())) >= {"conditions", NAME}
    assert (tmp_path / f"memory-{NAME}.svg").is_file()
    assert "resnet20 da3: 1/" in result.output


@pytest.mark.full
def test_resnet50_reaches_its_figures() -> None:
    rows = footprint.measure(FootprintSetup("resnet50", 224, rounds=0))["resnet50"]
    whole = rows["finetune"]["stored_measured"]
    assert 37 * rows["da3"]["stored_measured"] <= whole
    assert 12 * rows["da3-fp32"]["stored_measured"] <= whole
    assert all(abs(row["agreement"]) <= footprint.AGREEMENT for row in rows.values())
    assert set(rows) == set(footprint.rows())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_same_is_kept_on_a_gpu(document: dict[str, Any]) -> None:
    setup = FootprintSetup(NAME, 32, batch=4, methods=SETUP.methods, rounds=1, device="cuda")
    rows = footprint.measure(setup)[NAME]
    for name, row in rows.items():
        assert row["stored_measured"] == pytest.approx(
            document[NAME][name]["stored_measured"], rel=0.05
        )
        assert row["peak"] > row["stored_measured"]
