"""Where a training goes, and the command that repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.cli.options import named_recipe
from toolchain.cli.training import CHECKPOINTS, output_name, planned, train_command, varied
from toolchain.core.errors import UsageError
from toolchain.core.words import is_domain_name


@pytest.mark.parametrize(
    ("method", "name"), [(None, "cars"), ("da3", "cars"), ("head", "cars@head")]
)
def test_only_another_method_is_part_of_the_name(method: str | None, name: str) -> None:
    own = named_recipe("cars", None)
    assert output_name(varied(own, method, ()), own) == name


def test_no_domain_can_have_the_name_of_another_ones_method() -> None:
    own = named_recipe("cars", None)
    assert not is_domain_name(output_name(own.by("head"), own))


def test_the_domain_of_a_recipe_is_no_setting() -> None:
    with pytest.raises(
        UsageError, match=r"own domain 'cars', got --set domain=x\n  fix: train into"
    ):
        varied(named_recipe("cars", None), None, ["domain=x"])


def test_a_smaller_size_alone_is_told_to_crop(capsys: pytest.CaptureFixture[str]) -> None:
    own = named_recipe("flowers", None)
    assert (own.preprocess.size, own.preprocess.resize) == (224, 256)
    planned(own, None, None, ["preprocess.size=96"], None)
    assert capsys.readouterr().err == (
        "note: with preprocess.size 96 and preprocess.resize 256 the model sees the middle 38% of "
        "a picture's shorter side, and 88% in the recipe; to see as much: "
        "--set preprocess.resize=110\n"
    )
    for quiet in (
        ["preprocess.size=96", "preprocess.resize=110"],
        ["preprocess.resize=256", "preprocess.size=96"],
        ["preprocess.size=240"],
        ["train.lr=0.003"],
    ):
        planned(own, None, None, quiet, None)
        assert capsys.readouterr().err == ""


def test_the_command_names_a_folder_only_where_it_is_not_the_default() -> None:
    assert train_command("cars", None, "cars@head", CHECKPOINTS / "cars@head", method="head") == (
        "da3 train --domain cars --method head"
    )
    assert train_command("cars", None, "cars", Path("x y")) == (
        "da3 train --domain cars --out 'x y'"
    )
