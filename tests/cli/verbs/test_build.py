"""``da3 export --target``, ``da3 build`` and ``da3 bench --engine`` from the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from tests.support.kitted import Kitted
from tests.support.simulated.engines import deploy, simulated
from tests.support.toy_export import Run
from toolchain.cli import root
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.device.boards.cuda import gpus

# Ctrl-C may be ignored where the tests run, and a child inherits that.
START = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from toolchain.cli import main
from toolchain.device.engine import build
clock = build.perf_counter
def started():
    print("the builder starts", flush=True)
    return clock()
build.perf_counter = started
main()
"""
RTX = ("--module", "tensorrt_rtx")
NO_GPU = pytest.mark.skipif(bool(gpus()), reason="says what it says on a machine without a GPU")


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words], prog_name="da3")


def test_export_writes_kits_and_says_what_they_cost(run: Run, tmp_path: Path) -> None:
    words = ("--domain", "toy", "--checkpoint", str(run.home / "build/domains/toy"))
    with chdir(run.home):
        result = invoke(
            "export",
            *words,
            *("--dist", tmp_path, "--target", "orin-nano-jp6.2", "--target", "nano-jp4.6"),
            *("--precision", "fp32", "--precision", "fp16", "--json"),
        )
    assert result.exit_code == 0, result.stderr
    kits = json.loads(result.stdout)["kits"]
    assert [(kit["target"], kit["precision"], kit["flavours"]) for kit in kits] == [
        (target, precision, ["swap"])
        for target in ("orin-nano-jp6.2", "nano-jp4.6")
        for precision in ("fp32", "fp16")
    ]
    for kit in kits:
        assert Path(kit["path"]).is_dir()
        assert kit["measured"]["samples"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "--target"),
        (["--target", "orin-nano"], "unknown target"),
        (["--target", "nano-jp4.6", "--precision", "int8"], "does not compute in it"),
    ],
)
def test_an_order_that_cannot_be_meant(words: list[str], message: str, run: Run) -> None:
    with chdir(run.home):
        result = invoke("export", "--domain", "toy", "--overwrite", *words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "fix:" in result.stderr


def test_a_check_tells_counts_and_sizes(kitted: Kitted) -> None:
    kit = kitted.kits["orin fp16"]
    result = invoke("build", "--check", kit.path, *RTX, "--flavour", "swap")
    assert result.exit_code == 0, result.stderr
    (model,) = kit.manifest.flavour("swap").models
    count = f"{model.conditionals}, {model.boundaries} boundaries shown, 0 added here"
    assert count in result.stdout
    assert "nothing was run or kept" in result.stdout
    document = json.loads(invoke("build", "--check", kit.path, *RTX, "--json").stdout)
    assert [item["flavour"] for item in document["flavours"]] == ["swap", "staged"]


@NO_GPU
def test_without_a_gpu_a_build_says_so(kitted: Kitted, tmp_path: Path) -> None:
    result = invoke("build", kitted.kits["orin fp16"].path, "--engines", tmp_path / "engines")
    assert result.exit_code == 1
    assert "da3 build --check parses" in result.stderr
    assert not (tmp_path / "engines").exists()


def test_a_folder_that_is_no_kit(tmp_path: Path) -> None:
    result = invoke("build", "--check", tmp_path)
    assert result.exit_code == 1
    assert "kit" in result.stderr


@NO_GPU
def test_an_engine_without_a_gpu_says_so(kitted: Kitted, tmp_path: Path) -> None:
    engine = deploy(kitted.exported, tmp_path, simulated())
    for words in (
        ("bench", "--engine", engine, "--bundle", kitted.report.bundle),
        ("run", "--backbone", engine, "--bundle", kitted.report.bundle, "none.png"),
    ):
        result = invoke(*words)
        assert result.exit_code == 1
        assert "fix:" in result.stderr


def test_an_engine_takes_no_options_of_onnxruntime(kitted: Kitted, tmp_path: Path) -> None:
    engine = deploy(kitted.exported, tmp_path, simulated())
    bundle = ("--bundle", kitted.report.bundle)
    result = invoke("bench", "--engine", engine, *bundle, "--parts", "swap")
    assert result.exit_code == 2
    result = invoke("run", "--backbone", engine, *bundle, "--provider", "cpu", "none.png")
    assert result.exit_code == 2
    assert "engine" in result.stderr


def test_ctrl_c_ends_a_check_inside_the_builder(kitted: Kitted, tmp_path: Path) -> None:
    """A chain that the builder ponders for minutes without looking up."""
    kit = kitted.kits["thor fp32"]
    path = tmp_path / kit.path.name
    shutil.copytree(kit.path, path)
    model = onnx.load_model_from_string(kit.read("swap.onnx"))
    end = next(value for value in model.graph.output if value.name == "logits")
    for node in model.graph.node:
        node.output[:] = ["chain0" if name == "logits" else name for name in node.output]
    for place in range(8000):
        result = "logits" if place == 7999 else f"chain{place + 1}"
        node = onnx.helper.make_node("Relu", [f"chain{place}"], [result], name=f"chain{place}")
        model.graph.node.append(node)
    assert end.name == "logits"
    data = model.SerializeToString()
    (path / "swap.onnx").write_bytes(data)
    document = json.loads((path / "kit.json").read_text())
    for entry in document["files"]:
        if entry["name"] == "swap.onnx":
            entry.update(digest=sha256(data), size=len(data))
    (path / "kit.json").write_bytes(canonical_json(document))
    command = [
        sys.executable,
        "-c",
        START,
        "build",
        "--check",
        str(path),
        *RTX,
        "--flavour",
        "swap",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"the builder starts\n"
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (-signal.SIGINT, 130)
