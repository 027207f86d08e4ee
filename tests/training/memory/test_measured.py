"""The peak of a step, against bytes known by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toolchain.training.memory.measured import peak


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=12))
def test_the_peak_is_that_of_what_is_held_at_once(changes: list[tuple[bool, int]]) -> None:
    sizes: list[int] = []
    highest = 0
    for drop, count in changes:
        if drop and sizes:
            sizes.pop()
        else:
            sizes.append(4096 * count)
            highest = max(highest, sum(sizes))

    def step() -> None:
        tensors: list[Tensor] = []
        for drop, count in changes:
            if drop and tensors:
                tensors.pop()
            else:
                tensors.append(torch.empty(1024 * count))

    assert peak(step) == highest


def test_the_peak_is_silent_and_gives_errors_on(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError("in the step")

    with pytest.raises(ValueError, match="in the step"):
        peak(fails)
    assert peak(lambda: None) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_peak_of_cuda_is_its_allocators() -> None:
    def step() -> None:
        torch.empty(1 << 20, device="cuda")

    assert peak(step, device="cuda") == 4 << 20
