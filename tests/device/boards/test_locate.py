"""Which target a machine is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.boards import ORIN_GPU, ORIN_MODEL, RTX_GPU, machine
from toolchain.device.boards.locate import board_of, here, targets_of
from toolchain.device.boards.target import TARGETS


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA Jetson Nano Developer Kit", "nano"),
        ("NVIDIA Jetson Nano 2GB Developer Kit", "nano"),
        ("quill", "tx2"),
        ("NVIDIA Jetson TX2 Developer Kit", "tx2"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "xavier-nx"),
        ("Jetson-AGX", "xavier-agx"),
        ("NVIDIA Jetson AGX Xavier Developer Kit", "xavier-agx"),
        ("NVIDIA Orin Nano Developer Kit", "orin-nano"),
        (ORIN_MODEL, "orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "orin-agx"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "thor"),
        ("Raspberry Pi 5 Model B Rev 1.0", None),
        ("", None),
    ],
)
def test_boards_by_their_model(model: str, name: str | None) -> None:
    answer = board_of(model)
    assert (answer.name if answer else None) == name


def test_every_board_of_the_table_can_be_recognised() -> None:
    """By its own title at the latest."""
    boards = {target.board.name: target.board for target in TARGETS.values()}
    for name, board in boards.items():
        answer = board_of(board.title)
        assert name == "desktop" or (answer is not None and answer.name == name)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"tensorrt": "10.3.0", "jetpack": "6.1"}, "orin-nano-jp6.1"),
        ({"tensorrt": "10.3.0", "jetpack": "6.2.1"}, "orin-nano-jp6.2"),
        ({"tensorrt": "10.3.0"}, "orin-nano-jp6.2"),
        ({"tensorrt_library": "10.3.0", "jetpack": "6.2"}, "orin-nano-jp6.2"),
        ({"tensorrt_library": "8.6.2", "jetpack": "6.0"}, "orin-nano-jp6.0"),
        ({"tensorrt": "10.7.0", "jetpack": "6.2"}, "orin-nano-jp6.2"),
        ({"tensorrt": "11.4.1.2", "jetpack": "7.2.1"}, "orin-nano-jp7.2.2"),
        ({"tensorrt": "11.9.0", "jetpack": "8.0"}, "orin-nano-jp7.2.2"),
        ({"jetpack": "6.2.1"}, "orin-nano-jp6.2"),
        ({"jetpack": "7.2.1"}, "orin-nano-jp7.2"),
        ({"jetpack": "7.2.3"}, "orin-nano-jp7.2.2"),
        ({"tensorrt": "8.5.2", "jetpack": "5.1.2"}, None),
        ({"jetpack": "5.1.2"}, None),
        ({}, None),
    ],
)
def test_an_orin_nano_by_its_tensorrt(facts: dict[str, Any], name: str | None) -> None:
    target = here(machine(board=ORIN_MODEL, **facts))
    assert (target.name if target else None) == name


def test_the_module_goes_before_the_library() -> None:
    target = here(machine(board=ORIN_MODEL, tensorrt="10.3.0", tensorrt_library="8.6.2"))
    assert target is not None
    assert target.release.tensorrt == "10.3"


def test_the_first_jetpack_4_6_is_below_every_row() -> None:
    nano = "NVIDIA Jetson Nano Developer Kit"
    assert here(machine(board=nano, tensorrt_library="8.0.1", jetpack="4.6")) is None
    target = here(machine(board=nano, tensorrt_library="8.2.1", jetpack="4.6.1"))
    assert target is not None
    assert target.name == "nano-jp4.6"


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"tensorrt": "10.3.0"}, "desktop-trt10.3"),
        ({"tensorrt": "10.8.0.43"}, "desktop-trt10.3"),
        ({"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1"}, "desktop-trt10.13"),
        ({"tensorrt": "11.4.0.106"}, "desktop-trt11.4"),
        ({"tensorrt_rtx": "1.7.1.116"}, "desktop-rtx1.7"),
        ({"tensorrt_rtx": "1.4.0"}, None),
        ({"tensorrt": "8.6.1"}, None),
        ({"tensorrt": None}, None),
        ({}, None),
    ],
)
def test_a_pc_with_a_card(facts: dict[str, Any], name: str | None) -> None:
    target = here(machine(gpus=(RTX_GPU,), **facts))
    assert (target.name if target else None) == name


def test_a_pc_without_a_card_and_a_foreign_board_are_no_target() -> None:
    assert here(machine(tensorrt_rtx="1.7.1")) is None
    assert here(machine(board="Raspberry Pi 5", gpus=(ORIN_GPU,), tensorrt="10.3.0")) is None


@given(version=st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}(\.[0-9]{1,3}){0,2}", fullmatch=True))
def test_a_target_is_never_newer_than_what_is_installed(version: str) -> None:
    """Law: the row's TensorRT is the newest of the board's that is not above the installed one."""

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")[:2]))

    target = here(machine(board=ORIN_MODEL, tensorrt=version))
    below = [
        number(row.release.tensorrt)
        for row in targets_of("orin-nano")
        if number(row.release.tensorrt) <= number(version)
    ]
    assert (number(target.release.tensorrt) if target else None) == max(below, default=None)


@given(text=st.text(max_size=40), model=st.text(max_size=40))
def test_any_text_is_an_answer(text: str, model: str) -> None:
    here(machine(board=model, tensorrt=text, jetpack=text))
    here(machine(board=f"{model} Orin Nano", tensorrt=text, jetpack=text))
    here(machine(board="Orin Nano", jetpack=text))
