"""Options that several verbs take."""

from __future__ import annotations

import pytest

from tests.support.toy_export import invoke


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--domain", "cars", "--log", ""),
        ("train", "--domain", "cars", "--out", ""),
        ("export", "--domain", "cars", "--dist", ""),
        ("check", ""),
    ],
)
def test_an_empty_path_is_not_the_folder_here(words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "expected a path, got an empty text" in result.stderr
