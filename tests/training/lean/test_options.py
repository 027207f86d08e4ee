"""Options are checked once, where they are made."""

from __future__ import annotations

import subprocess
import sys

import pytest

from toolchain.core.errors import AttachError
from toolchain.training.lean import Lean


def test_nothing_is_approximated_by_default() -> None:
    assert Lean() == Lean(keep="fp32", smooth="exact")


@pytest.mark.parametrize("name", ["keep", "smooth"])
def test_an_unknown_value_names_the_exact_one(name: str) -> None:
    with pytest.raises(AttachError, match=rf"{name}.*got 'int4'\s+fix: .*exact"):
        Lean(**{name: "int4"})  # type: ignore[arg-type]


def test_options_need_no_torch() -> None:
    code = "import sys, toolchain.training.lean.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
