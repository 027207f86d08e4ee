"""From a recipe to a checked bundle by commands alone."""

from __future__ import annotations

import json

import pytest

from tests.support.toy_export import Run

PARITY = {"passed", "tolerance", "cases", "forced", "comparisons", "notes"}


def test_export_without_a_checkpoint_names_the_command_that_trains(run: Run) -> None:
    result = run.said["too early"]
    assert result.exit_code == 1
    assert "expected a trained domain at build/domains/toy" in result.stderr
    assert "fix: da3 train --domain toy" in result.stderr
    assert result.stdout == ""


def test_a_budget_that_does_not_hold_is_refused_before_the_first_step(run: Run) -> None:
    result = run.said["too little memory"]
    assert (result.exit_code, result.stdout) == (1, "")
    assert "beside weights and pictures; the domain takes" in result.stderr
    assert "error: training da3 with batch 16 needs" in result.stderr
    assert "fix: train da3 with adaptor.pool:" in result.stderr
    assert "epoch" not in result.stderr


def test_train_as_json_holds_the_figures(run: Run) -> None:
    result = run.said["train"]
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert set(document) == {
        *("domain", "checkpoint", "method", "backbone", "classes", "accuracy", "head_accuracy"),
        *("balanced_accuracy", "per_class", "confusion", "history"),
        *("executed_share", "gate_rates", "steps", "seconds", "conclusion", "fault"),
    }
    right = sum(c["pictures"] for c in document["confusion"] if c["class"] == c["taken_for"])
    assert right / 60 == document["accuracy"]
    assert sum(one["pictures"] for one in document["per_class"]) == 60
    shares = [one["accuracy"] for one in document["per_class"]]
    assert sum(shares) / len(shares) == pytest.approx(document["balanced_accuracy"])
    assert [len(document["history"]["epochs"]), document["history"]["epoch"]] == [20, 20]
    assert (document["domain"], document["checkpoint"]) == ("toy", "build/domains/toy")
    assert 0 <= document["accuracy"] <= 1
    assert set(document["gate_rates"]) == {"block00", "block02"}
    assert "epoch 1/20" in result.stderr
    trial, epoch = (
        result.stderr.index(w) for w in ("export it untrained, for trial", "epoch 1/20")
    )
    assert trial < epoch


def test_export_as_json_holds_paths_sizes_parity_and_rates(run: Run) -> None:
    result = run.said["export"]
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert set(document) == {
        *("domain", "checkpoint", "bundle", "backbone", "structure_cached", "patch", "parity"),
        *("gate_rates", "executed_share", "accuracy", "head_accuracy", "golden", "kits", "refused"),
        "seconds",
    }
    assert document["checkpoint"] == {"path": "build/domains/toy", "trained_now": False}
    assert document["bundle"]["path"] == "dist/toy.da3b"
    assert run.home / document["backbone"]["path"] == run.backbone
    assert not document["backbone"]["reused"]
    assert document["patch"] is None
    assert document["golden"]["pictures"] == "test"
    assert "pictures of the test data, for everyone" in run.said["export again"].stdout
    assert set(document["parity"]) == PARITY
    assert document["parity"]["passed"]
    assert {one["flavour"] for one in document["parity"]["comparisons"]} == {
        *("swap-if", "swap-rows", "static-if", "staged")
    }


def test_the_export_does_not_capture_again_what_the_training_did(run: Run) -> None:
    assert json.loads(run.said["export"].stdout)["structure_cached"]


def test_a_refused_precision_is_told_beside_the_bundle(run: Run) -> None:
    result = run.said["refused kit"]
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["kits"] == []
    (refused,) = document["refused"]
    assert (refused["target"], refused["precision"]) == ("orin-nano-jp6.2", "fp16")
    assert "error of a logit" in refused["message"]
    assert "error: no kit for orin-nano-jp6.2 fp16: toy on orin-nano-jp6.2: " in result.stderr
    assert "fix: take fp32 on that target" in result.stderr
    assert run.bundle.is_file()


def test_steps_are_told_on_stderr_as_they_begin(run: Run) -> None:
    lines = run.said["export"].stderr.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("start", "restore", "read", "split", "take", "link", "compare", "pack")
    ]


def test_a_second_export_asks_before_it_overwrites(run: Run) -> None:
    result = run.said["export twice"]
    assert result.exit_code == 1
    assert "dist/toy.da3b exists" in result.stderr
    assert "--overwrite" in result.stderr


def test_export_for_people_shows_what_was_made(run: Run) -> None:
    result = run.said["export again"]
    assert result.exit_code == 0, result.stderr
    for words in (
        "dist/toy.da3b",
        "reused",
        "accuracy",
        "executed",
        "parity",
        "block02",
        "swap-if",
    ):
        assert words in result.stdout
    assert "\x1b" not in result.stdout


def test_one_command_trains_exports_and_reuses_the_backbone(run: Run) -> None:
    result = run.said["all in one"]
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["checkpoint"] == {"path": "build/domains/second", "trained_now": True}
    assert document["backbone"]["reused"]
    assert document["structure_cached"]
    assert (run.home / "dist" / "second.da3b").is_file()
    assert "points above the head alone" in " ".join(result.stderr.split())


def test_another_method_lies_beside_the_recipes_own(run: Run) -> None:
    result = run.said["by another method"]
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["checkpoint"] == {"path": "build/domains/toy@head", "trained_now": True}
    assert document["bundle"]["path"] == "dist/toy@head.da3b"
    assert document["domain"] == "toy"
    assert {path.name for path in run.checkpoint.parent.iterdir()} == {"toy", "toy@head", "second"}
    assert run.bundle.is_file()


def test_check_says_what_was_verified_and_relinked(run: Run) -> None:
    result = run.said["check"]
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("  verified  ") == 4
    assert "relinked  byte for byte from the halves: swap-if, swap-rows, static-if" in result.stdout
    assert "FAILED" not in result.stdout


def test_check_as_json(run: Run) -> None:
    document = json.loads(run.said["check as JSON"].stdout)
    assert set(document) == {
        *("bundle", "backbone", "domain", "verified", "relinked", "not_run", "parity")
    }
    assert document["domain"] == "toy"
    assert set(document["parity"]) == PARITY
    assert document["not_run"] == []
