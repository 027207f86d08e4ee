"""The text of recipes: YAML 1.2, and nothing that only looks like a recipe."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.recipes import cars
from toolchain import recipe
from toolchain.core.errors import RecipeError


def test_words_of_yaml_1_1_are_text_and_exponents_are_numbers() -> None:
    text = recipe.dump(dataclasses.replace(cars(), title="cars")).replace(
        "title: cars", "title: yes"
    )
    loaded = recipe.loads(text.replace("lr: 0.01", "lr: 1e-2"))
    assert loaded.title == "yes"
    assert loaded.train.lr == pytest.approx(0.01)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_law_any_bytes_give_a_recipe_error(data: bytes) -> None:
    """Law: bytes that are no recipe raise RecipeError and nothing else."""
    with pytest.raises(RecipeError):
        recipe.loads(data)


def test_utf_16_is_refused_with_what_to_save_and_windows_line_ends_are_read() -> None:
    text = recipe.dump(cars())
    with pytest.raises(RecipeError, match="save it as UTF-8"):
        recipe.loads(text.encode("utf-16"))
    assert recipe.loads(text.replace("\n", "\r\n").encode("utf-8-sig")) == cars()
