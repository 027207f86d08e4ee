"""``da3 backbones``."""

from __future__ import annotations

import json

from tests.support.toy_export import invoke


def test_the_table_says_whose_weights() -> None:
    result = invoke("backbones")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert "32 px" in rows["resnet20"]
    assert "shipped" in rows["resnet20"]
    assert "yours" in rows["resnet50"]


def test_as_json() -> None:
    rows = {
        row["name"]: row for row in json.loads(invoke("backbones", "--json").stdout)["backbones"]
    }
    assert set(rows["resnet20"]) == {
        *("name", "title", "input_size", "licence", "source", "weights_sha256"),
        *("weights_shipped", "error"),
    }
    assert rows["resnet20"]["weights_shipped"]
    assert rows["resnet50"]["weights_sha256"] is None
