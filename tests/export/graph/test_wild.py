"""Nets as real model zoos write them: every flavour answers as PyTorch does, whole or by rows."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import toys, wild
from tests.support.cases import Case, Made, close, names
from toolchain.bundle.golden import FORCE, shifted
from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import LinkError
from toolchain.export.graph.link import link
from toolchain.export.graph.names import IMAGE
from toolchain.export.graph.split import split
from toolchain.training.adapt.attached import attach


@dataclasses.dataclass(frozen=True)
class WildCase(Case):
    """A case whose pictures are those of the wild nets."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return wild.SHAPE


@cache
def built(name: str) -> Made:
    case = WildCase(name, build=lambda: wild.built(name), options={"placement": "all"})
    return Made(case, f"wild-{name}")


@pytest.mark.parametrize("name", wild.EXPORTED)
def test_every_flavour_answers_as_pytorch_does(name: str) -> None:
    """Law: alone and in a batch, gates mixed, all open and all closed."""
    made = built(name)
    sites = tuple(site for site in made.model.sites if f"{site}.gate.bias" in made.slots)
    assert sites
    for flavour, model in made.flavours().items():
        for batch in (1,) if flavour.endswith("-if") else (1, 5):
            images = made.case.images(batch, seed=batch)
            for amount in (0.0, FORCE, -FORCE):
                if amount and flavour.startswith("static"):
                    continue  # its slots are inside
                slots = shifted(made.slots, sites, np.full(len(sites), amount, np.float32))
                state = {key: torch.from_numpy(value) for key, value in slots.items()}
                made.model.domain.load_state_dict(state)
                with torch.no_grad():
                    want = made.model(images).numpy()
                assert close(model.run(images.numpy(), slots).logits, want), (flavour, batch)


def test_the_picture_keeps_its_name_where_the_first_block_reads_it() -> None:
    halves = built("stemless").halves
    assert halves.cuts[0].input == IMAGE
    assert next(value.name for value in halves.backbone.graph.inputs) == IMAGE
    assert IMAGE not in [value.name for value in halves.backbone.graph.outputs]


def test_what_tells_the_batchs_shape_is_computed_anew_for_the_open_rows() -> None:
    """transformers' ViT: one mask for all layers, which has as many rows as the batch."""
    made = built("transformers_vit")
    again = {
        n for n in names(link(made.halves, Linkage("swap", "rows"))) if n.startswith("block01/")
    }
    assert any("Shape" not in n and n.startswith("block01/v") for n in again)


class MaskedLike(wild.Tokens):
    """A mask of ones like the patches, which are no cut point: their shape may be anything."""

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        tokens = patches.flatten(2).transpose(1, 2)
        mask = torch.ones_like(patches[:, 0]).flatten(1) > 0
        mask = mask[:, None, None, :].expand(-1, 1, wild.TOKENS, wild.TOKENS)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.classified(tokens)


def test_a_block_that_reads_another_shape_than_the_batchs_is_refused_by_name() -> None:
    net = wild.built(lambda: MaskedLike([wild.Fused(), wild.Fused()]))
    halves = split(toys.scrambled(attach(net, classes=3, input_shape=wild.SHAPE, rank=4, pool=2)))
    with pytest.raises(LinkError, match=r"block 'blocks\.0' reads 'v\d+' besides its input") as e:
        link(halves, Linkage("swap", "rows"))
    assert "inside the block" in e.value.fix
