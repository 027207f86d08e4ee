"""The table of backbones, filled by real packages: ours, and small ones in ``tmp_path``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.adapt.conftest import Install
from toolchain.core.errors import Da3Error, UnknownNameError, UsageError, WeightsError
from toolchain.pictures.preprocess import Preprocessing
from toolchain.training.adapt import backbones
from toolchain.training.adapt.backbones import Backbone, Carrier
from toolchain.training.adapt.weights import load_backbone

OURS = {"resnet20", "resnet26", "resnet50", "mobilenet_v2", "efficientnet_lite0"}

TINY = """
from toolchain.training.adapt.backbones import Backbone

def build():
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

TINY = Backbone(name="{name}", title="tiny", build=build, input_size=2, classifier="1",
                licence="Apache-2.0", source="a test")
"""


def test_our_backbones_are_available_and_consistent() -> None:
    assert set(backbones.available()) >= OURS
    assert list(backbones.available()) == sorted(backbones.available())
    for name in OURS:
        backbone = backbones.get(name)
        assert backbone.name == name
        assert backbone.input_size % 32 == 0


def test_a_users_package_registers_the_same_way(install: Install) -> None:
    install("users_nets", "tiny_net", TINY.format(name="tiny_net"))
    assert "tiny_net" in backbones.available()
    backbone = backbones.get("tiny_net")
    assert backbone.title == "tiny"
    assert backbone.build().get_submodule(backbone.classifier).out_features == 3


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"(?s)'resnet51'.*did you mean resnet50"):
        backbones.get("resnet51")


def test_a_broken_package_fails_only_when_asked_for(install: Install) -> None:
    install("broken_nets", "broken_net", "raise RuntimeError('no licence key')")
    assert {"broken_net", "resnet20"} <= set(backbones.available())
    assert backbones.get("resnet20").name == "resnet20"
    with pytest.raises(Da3Error, match=r"(?s)broken_nets.*RuntimeError: no licence key"):
        backbones.get("broken_net")


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("first_nets", "twin", TINY.format(name="twin"))
    install("second_nets", "twin", TINY.format(name="twin"))
    with pytest.raises(Da3Error, match=r"first_nets .*second_nets "):
        backbones.get("twin")
    assert backbones.get("resnet20").name == "resnet20"


@pytest.mark.parametrize(
    ("code", "got"),
    [
        ("TINY = 3", "got int"),
        (TINY.format(name="elsewhere"), "got one named 'elsewhere'"),
        ("", "AttributeError"),
    ],
)
def test_what_is_no_backbone_of_that_name_is_refused(install: Install, code: str, got: str) -> None:
    install("odd_nets", "odd_net", code)
    with pytest.raises(Da3Error, match=f"(?s)odd_nets.*{got}"):
        backbones.get("odd_net")


BUILT = TINY.format(name="tiny_net")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (BUILT.replace("return", "return 1 +"), "its build() raised TypeError: unsupported"),
        (BUILT.replace("return", "nn ="), "expected an nn.Module of its build(), got NoneType"),
        (
            BUILT.replace('classifier="1"', 'classifier="fc"'),
            "classifier 'fc' among its modules ... fix: in that package, name classifier='1'",
        ),
    ],
)
def test_a_fault_of_a_package_names_the_package(install: Install, code: str, words: str) -> None:
    install("users_nets", "tiny_net", code)
    with pytest.raises(WeightsError, match=r"users_nets \(users_nets:TINY\): ") as raised:
        load_backbone("tiny_net", untrained_seed=0)
    assert all(word in str(raised.value) for word in words.split(" ... "))


def test_a_fault_of_a_description_keeps_its_own_fix(install: Install) -> None:
    install("users_nets", "tiny_net", BUILT.replace('licence="Apache-2.0"', 'licence=""'))
    with pytest.raises(UsageError, match="users_nets") as raised:
        backbones.get("tiny_net")
    assert raised.value.fix.startswith("in that package: give an SPDX expression")


@pytest.mark.parametrize(
    ("package", "path", "words"),
    [
        ("tests.support", "models/toys.py", "fix: in that package, name weights_file='toys.py'"),
        ("tests.support", "nowhere.pth", "name its weights_file from the folder of tests.support"),
        ("no_such_package", "w.pth", "ships its weights, got No module named ... name the package"),
    ],
)
def test_weights_that_a_package_does_not_ship_there(
    install: Install, package: str, path: str, words: str
) -> None:
    shipped = f'weights_file="{path}", weights_sha256="sha256:{"0" * 64}", package="{package}"'
    install("users_nets", "tiny_net", BUILT.replace('source="a test"', f'source="x", {shipped}'))
    with pytest.raises(WeightsError, match=r"users_nets \(users_nets:TINY\): ") as raised:
        load_backbone("tiny_net")
    assert all(word in str(raised.value) for word in words.split(" ... "))


@pytest.mark.parametrize("given", ["weights_file", "weights_sha256", "package"])
def test_half_a_description_of_shipped_weights_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="together"):
        Backbone(
            name="x",
            title="x",
            build=lambda: pytest.fail("nothing is built"),
            input_size=8,
            classifier="fc",
            licence="Apache-2.0",
            source="x",
            **{given: "x"},  # type: ignore[arg-type]
        )


def test_weights_are_shipped_or_carried_and_not_both() -> None:
    """A package ships the weights, or it names another one that carries them."""
    parts = {"weights_file": "x.safetensors", "weights_sha256": f"sha256:{'0' * 64}"}
    carrier = Carrier(requirement="x==1", package="x", file="x.pth", sha256="sha256:0")
    assert described(**parts, carrier=carrier).weights == "to fetch"
    assert described(**parts, package="x").weights == "shipped"
    for odd in ({**parts, "package": "x", "carrier": carrier}, {"carrier": carrier}):
        with pytest.raises(UsageError, match="package or carrier together"):
            described(**odd)


def test_looking_backbones_up_imports_no_framework() -> None:
    code = (
        "import sys; from toolchain.training.adapt import backbones; "
        "[backbones.get(name) for name in backbones.available()]; "
        "print(*{'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == ""


def described(**changes: object) -> Backbone:
    values = {
        "name": "x",
        "title": "x",
        "build": lambda: pytest.fail("nothing is built"),
        "input_size": 224,
        "classifier": "_fc",
        "licence": "Apache-2.0",
        "source": "x",
        "mean": (127 / 255,) * 3,
        "std": (128 / 255,) * 3,
        "interpolation": "bicubic",
    }
    return Backbone(**{**values, **changes})  # type: ignore[arg-type]


PREPROCESS = Preprocessing(224, 256, "center", "bicubic", "RGB", (0.498,) * 3, (0.502,) * 3)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_a_preprocessing_that_is_not_that_of_the_training_is_told() -> None:
    assert described().differences(PREPROCESS) == []
    (mean, std) = described().differences(replace(PREPROCESS, **IMAGENET))  # type: ignore[arg-type]
    assert "mean [0.485, 0.456, 0.406] instead of" in mean
    assert std.startswith("std")
    (line,) = described().differences(replace(PREPROCESS, interpolation="nearest"))
    assert line == "interpolation nearest instead of bicubic"


def test_a_backbone_that_says_nothing_differs_from_nothing() -> None:
    silent = described(mean=None, std=None, interpolation=None)
    assert silent.differences(PREPROCESS) == []


def test_channels_in_another_order_are_the_same_values() -> None:
    imagenet = described(**IMAGENET, interpolation=None)
    turned: dict[str, Any] = {name: tuple(reversed(values)) for name, values in IMAGENET.items()}
    assert imagenet.differences(replace(PREPROCESS, colour="BGR", **turned)) == []


@pytest.mark.parametrize("licence", ["", " ", "x" * 201])
def test_a_licence_that_no_artefact_can_carry_is_refused(licence: str) -> None:
    with pytest.raises(UsageError, match="expected a licence of 1 to 200"):
        described(licence=licence)


def test_our_backbones_say_what_they_were_trained_with() -> None:
    for name in OURS:
        backbone = backbones.get(name)
        assert backbone.mean is not None
        assert backbone.std is not None
