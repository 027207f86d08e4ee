"""Limits that cannot be meant are refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from toolchain.core.errors import UsageError
from toolchain.device.serve import Limits


@pytest.mark.parametrize("name", [item.name for item in fields(Limits)])
@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), 1e300])
def test_a_limit_that_cannot_be_meant_is_refused(name: str, value: float) -> None:
    limits: dict[str, Any] = {name: value}
    if value == 0 and name in ("waiting", "grace_s"):
        assert getattr(Limits(**limits), name) == 0
        return
    with pytest.raises(UsageError, match=f"limit {name}: expected more than 0"):
        Limits(**limits)
