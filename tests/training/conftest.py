"""Every test of this room starts from the same random state."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers whatever ran before, on whichever worker."""
    torch.manual_seed(0)
