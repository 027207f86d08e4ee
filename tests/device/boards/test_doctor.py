"""What the report says of machines and of targets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.boards import ORIN_GPU, ORIN_MODEL, RTX_GPU, machine
from toolchain.device.boards.doctor import Ability, DoctorReport, describe, examine
from toolchain.device.boards.target import TARGETS, Target, find

EVERY = list(TARGETS.values())
ACTS = (
    "train",
    "export",
    "check",
    "run on onnxruntime",
    "build an engine",
    "run an engine",
    "build by script",
)
WORKSTATION = {
    "torch": "2.13.0",
    "onnx": "1.23.2",
    "onnx_ir": "1.1.0",
    "onnxscript": "0.7.2",
    "onnxruntime": "1.31.1",
}


def able(report: DoctorReport) -> set[str]:
    return {ability.act for ability in report.abilities if ability.able}


def act(report: DoctorReport, name: str) -> Ability:
    return next(ability for ability in report.abilities if ability.act == name)


@pytest.mark.parametrize("target", EVERY, ids=lambda t: t.name)
def test_every_act_of_every_target_is_told_once(target: Target) -> None:
    report = describe(target)
    assert tuple(ability.act for ability in report.abilities) == ACTS
    assert report.target == target.name
    for ability in report.abilities:
        assert ability.detail
        assert bool(ability.fix) != ability.able, ability
    assert {"build an engine", "build by script"} & able(report)
    assert all(fact.value and fact.source for fact in report.facts)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        WORKSTATION,
        {"board": ORIN_MODEL},
        {"gpus": (RTX_GPU,), "tensorrt_rtx": "1.7.1", **WORKSTATION},
        {"gpus": (ORIN_GPU,), "board": ORIN_MODEL, "tensorrt": "10.3.0", "trtexec": "/x/trtexec"},
    ],
)
def test_what_cannot_be_done_has_a_fix(facts: dict[str, Any]) -> None:
    report = examine(machine(**facts))
    assert tuple(ability.act for ability in report.abilities) == ACTS
    for ability in report.abilities:
        assert ability.detail
        assert bool(ability.fix) != ability.able, ability
    assert bool(report.why_none) == (report.target is None)


def test_a_workstation_without_a_card() -> None:
    report = examine(machine(**WORKSTATION, tensorrt_rtx="1.7.1", architecture="x86_64"))
    assert able(report) == {"train", "export", "check", "run on onnxruntime"}
    building = act(report, "build an engine")
    assert "no NVIDIA device" in building.detail
    assert "for checks only" in building.detail
    assert "nvidia-smi" in building.fix
    assert "for checks only" not in act(report, "run an engine").detail


def test_a_bare_pc_gets_the_extras_by_name() -> None:
    report = examine(machine())
    assert able(report) == set()
    assert act(report, "train").fix.endswith(": pip install '.[export]'")
    assert act(report, "check").fix.endswith(": pip install .")
    assert act(report, "run on onnxruntime").fix.endswith(": pip install .")


def test_a_pc_with_a_card_and_no_tensorrt() -> None:
    report = examine(machine(gpus=(RTX_GPU,)))
    assert act(report, "build an engine").fix.endswith(": pip install '.[tensorrt-rtx]'")
    assert "tensorrt-rtx" in report.why_none


def test_a_pc_with_all_of_it() -> None:
    report = examine(machine(gpus=(RTX_GPU,), tensorrt_rtx="1.7.1.116", **WORKSTATION))
    assert able(report) == set(ACTS) - {"build by script"}
    assert report.target == "desktop-rtx1.7"
    assert act(report, "run an engine").detail == (
        "tensorrt_rtx 1.7.1.116 on NVIDIA GeForce RTX 4090"
    )


def test_an_orin_with_its_jetpack() -> None:
    report = examine(
        machine(
            board=ORIN_MODEL,
            gpus=(ORIN_GPU,),
            jetpack="6.2",
            tensorrt="10.3.0",
            trtexec="/usr/src/tensorrt/bin/trtexec",
            onnxruntime="1.22.0",
        )
    )
    assert report.target == "orin-nano-jp6.2"
    # As README says: a device checks a bundle without torch and without onnx.
    assert able(report) == set(ACTS) - {"train", "export"}
    assert "pip install '.[check]'" in act(report, "check").detail
    assert "workstation" in act(report, "export").fix
    assert any("boundaries" in line for line in report.differences)


def test_an_orin_whose_python_does_not_see_tensorrt() -> None:
    """What an environment without the system's packages has."""
    folder = "/usr/lib/python3.10/dist-packages"
    report = examine(
        machine(
            board=ORIN_MODEL,
            gpus=(ORIN_GPU,),
            tensorrt_library="10.3.0",
            tensorrt_elsewhere=(folder,),
        )
    )
    fix = act(report, "build an engine").fix
    assert folder in fix
    assert "--system-site-packages" in fix


def test_an_orin_without_tensorrt() -> None:
    report = examine(machine(board=ORIN_MODEL, gpus=(ORIN_GPU,), jetpack="6.2"))
    assert act(report, "build an engine").fix == (
        "JetPack 6.2 carries TensorRT 10.3 for Python 3.10: sudo apt install python3-libnvinfer"
    )
    assert "libnvinfer-bin" in act(report, "build by script").fix


def test_a_container_without_the_runtime() -> None:
    fault = "expected the CUDA driver in libcuda.so.1, got file too short"
    report = examine(machine(board=ORIN_MODEL, driver_fault=fault, tensorrt="10.3.0"))
    assert act(report, "run an engine").detail == fault
    assert "--runtime nvidia" in act(report, "run an engine").fix


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"board": ORIN_MODEL, "tensorrt_library": "8.5.2", "jetpack": "5.1.2"},
            ("orin-nano-jp6.0 (TensorRT 8.6.2)", "got TensorRT 8.5.2 with JetPack 5.1.2"),
        ),
        ({"board": "Raspberry Pi 5"}, ("Raspberry Pi 5", "da3 doctor --targets")),
        ({}, ("without an NVIDIA device",)),
    ],
)
def test_a_machine_that_is_no_target_hears_why(
    facts: dict[str, Any], words: tuple[str, ...]
) -> None:
    report = examine(machine(**facts))
    assert report.target is None
    assert all(word in report.why_none for word in words)


def test_boards_that_build_by_script() -> None:
    for name in ("nano-jp4.6", "xavier-agx-jp5.1"):
        report = describe(find(name))
        assert able(report) == {"build by script"}
        assert "build.sh" in act(report, "build an engine").fix
        assert any("trtexec" in line for line in report.differences)


@pytest.mark.parametrize(
    ("name", "opset", "said", "unsaid"),
    [
        ("nano-jp4.6", 13, ("MatMul", "int8 is refused", "cannot hold layers"), ("leaves out",)),
        ("xavier-nx-jp5.1", 16, ("MatMul", "builder flags"), ("leaves out", "int8 is", "cannot")),
        ("orin-nx-jp6.0", 17, ("leaves out", "MatMul", "builder flags"), ("trtexec",)),
        ("orin-nx-jp6.2", 18, ("leaves out", "MatMul", "Q/DQ"), ("builder flags",)),
        ("thor-jp7.0", 18, ("Q/DQ",), ("leaves out", "MatMul", "builder flags")),
        ("desktop-rtx1.7", 18, ("Q/DQ",), ("leaves out", "MatMul", "on the board")),
    ],
)
def test_what_is_done_for_a_target(
    name: str, opset: int, said: tuple[str, ...], unsaid: tuple[str, ...]
) -> None:
    text = "\n".join(describe(find(name)).differences)
    assert f"ONNX opset {opset}," in text
    assert all(word in text for word in said)
    assert not any(word in text for word in unsaid)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("desktop-trt10.3", "pip install 'tensorrt-cu12==10.3.*'"),
        ("desktop-trt10.16", "pip install 'tensorrt-cu13==10.16.*'"),
        ("desktop-trt11.4", "pip install 'tensorrt-cu13==11.4.*'"),
        ("desktop-rtx1.7", "pip install '.[tensorrt-rtx]'"),
        ("orin-agx-jp7.2.2", "SBSA"),
        ("thor-jp7.1", "JetPack 7.1 carries TensorRT 10.13 for Python 3.12"),
    ],
)
def test_how_tensorrt_gets_there(name: str, command: str) -> None:
    assert command in act(describe(find(name)), "build an engine").detail


def test_the_opset_is_the_one_that_is_exported() -> None:
    from toolchain.device.boards import parsers
    from toolchain.export.graph.names import DIALECT

    assert DIALECT.opset == parsers.EXPORTED
