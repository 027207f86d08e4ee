"""Hostile recipes: each file is named after its attack, and each is refused for its own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain import recipe
from toolchain.core.errors import RecipeError

FOLDER = Path(__file__).parents[1] / "hostile" / "recipes"

# What the first fault must say: its path and words of its message.
EXPECTED = {
    "alias_bomb": ("line 1", "no anchors"),
    "anchor_and_alias": ("line 2", "no anchors"),
    "boolean_words": ("licence", "got true/false"),
    "crop_larger_than_picture": ("preprocess.resize", "at least the size"),
    "deep_nesting": ("line 22", "8 levels"),
    "duplicate_inner_key": ("train.lr", "second time on line 27"),
    "duplicate_key": ("golden", "second time on line 33"),
    "empty": ("(file)", "an empty file"),
    "fraction_as_count": ("train.epochs", "number 8.5"),
    "huge_integer": ("train.seed", "got number inf"),
    "infinite_rate": ("train.lr", "got number inf"),
    "line_break_in_title": ("title", "printable"),
    "list_as_key": ("(top)", "plain keys"),
    "list_on_top": ("(top)", "got list"),
    "local_tag": ("line 32", "no tags"),
    "merge_key": ("<<", "unknown key"),
    "nan_rate": ("train.lr", "got number nan"),
    "negative_size": ("preprocess.size", "from 8"),
    "not_utf8": ("(file)", "UTF-8"),
    "nul_byte": ("(file)", "special characters"),
    "only_comments": ("(file)", "an empty file"),
    "option_of_another_method": ("adaptor.attention", "no such option"),
    "other_domain": ("domain", "the file's name"),
    "overflowing_rate": ("train.lr", "got number inf"),
    "path_as_domain": ("domain", "expected a name"),
    "python_object_tag": ("line 2", "no tags"),
    "right_to_left_override": ("title", "printable"),
    "root_for_a_sample": ("data.root", "needs no folder"),
    "section_as_text": ("preprocess", "expected a section"),
    "tab_indent": ("line 26", "expected YAML"),
    "text_as_number": ("train.epochs", "got text '8'"),
    "text_on_top": ("(top)", "got text"),
    "true_as_number": ("golden", "got true/false"),
    "two_documents": ("line 33", "another document"),
    "two_means": ("preprocess.mean", "got 2 items"),
    "unclosed_nesting": ("line 22", "8 levels"),
    "unknown_keys": ("goldn", "unknown key"),
    "utf16": ("(file)", "UTF-8"),
    "weights_without_digest": ("weights_sha256", "digest"),
    "zero_std": ("preprocess.std[1]", "from 0.001"),
}


def test_every_file_is_expected_and_every_expectation_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_refused(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load(FOLDER / f"{name}.yaml")
    path, words = EXPECTED[name]
    assert caught.value.faults[0].path == path
    assert words in caught.value.faults[0].message
