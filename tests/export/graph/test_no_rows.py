"""The rows form when every gate of a batch is closed: a block is not run on no rows at all.

Blocks as in real mixers: their normalisations and turned products are among what onnxruntime
refuses to run on an empty batch.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys
from tests.support.cases import Case, Made, close
from toolchain.bundle.golden import FORCE, shifted
from toolchain.bundle.linkage import Linkage


class Normed(nn.Module):
    """GroupNorm becomes a reshape with one dimension to be found out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(F.gelu(self.one(self.norm(x))))
        return x + y


class Turned(nn.Module):
    """Mixes along the tokens: a Linear over turned, normalised tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.one = nn.Linear(64, 8)
        self.two = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        y: Tensor = self.two(F.gelu(self.one(tokens.transpose(1, 2))))
        return x + y.reshape(x.shape)


class Joined(nn.Module):
    """Branches that meet, one of them a norm without a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.one(x) + self.two(x) + self.norm(x))


BLOCKS: dict[str, type[nn.Module]] = {"normed": Normed, "turned": Turned, "joined": Joined}


@cache
def built(name: str) -> Made:
    """Kept for the run, as the folder beside the graphs must be."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return toys.Net(toys.stem(8), [BLOCKS[name](), BLOCKS[name]()], 8).eval()

    return Made(Case(name, build=build))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_rows_answers_a_batch_whose_gates_are_all_closed(name: str) -> None:
    """Law: gates all closed, all open and mixed answer as PyTorch does, whatever a block holds."""

    made = built(name)
    images = made.case.images(3)
    model = made.run(Linkage("swap", "rows"))
    sites = tuple(made.model.sites)
    for amount in (-FORCE, 0.0, FORCE):
        slots = shifted(made.slots, sites, np.full(len(sites), amount, np.float32))
        made.model.domain.load_state_dict({n: torch.from_numpy(a) for n, a in slots.items()})
        with torch.no_grad():
            want = made.model(images).numpy()
        assert close(model.run(images.numpy(), slots).logits, want)
