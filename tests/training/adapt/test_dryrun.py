"""One dry run: operations that PyTorch hides, the order of calls, and who reads what."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.support import toys, wild
from toolchain.training.adapt.dryrun import DryRun, dry_run


def run(name: str) -> DryRun:
    return dry_run(wild.built(name), wild.SHAPE)


def flops(net: nn.Module, name: str) -> int:
    return dry_run(net, wild.SHAPE).flops[name]


def test_fused_attention_counts_as_its_two_products() -> None:
    """By hand: 12 tokens, 2 heads of 4 channels; scores and mixed values are 12 x 12 x 4 each."""
    tokens, heads, wide = 12, 2, 4
    attention = 2 * heads * tokens * tokens * wide
    layers = tokens * wild.WIDTH * (3 * wild.WIDTH + 2 * 2 * wild.WIDTH)
    assert flops(wild.built(lambda: wild.Tokens([wild.Fused()])), "blocks.0") == attention + layers


class Encoder(nn.Module):
    """PyTorch's own layer, which in evaluation is one fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(wild.WIDTH, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_pytorchs_own_attention_layer_is_counted_too() -> None:
    attention = 2 * 2 * 12 * 12 * 4
    layers = 12 * wild.WIDTH * (4 * wild.WIDTH + 2 * 16)
    before = torch.backends.mha.get_fastpath_enabled()
    assert flops(wild.built(lambda: wild.Tokens([Encoder()])), "blocks.0") == attention + layers
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_calls_are_numbered_as_they_run() -> None:
    calls = run("disordered").calls
    assert [calls[f"blocks.{i}"].order for i in (2, 1, 0)] == sorted(
        calls[f"blocks.{i}"].order for i in range(3)
    )


def test_a_plain_chain_has_neither_leaks_nor_strangers() -> None:
    done = dry_run(toys.backbone("plain"), (3, 12, 12))
    for name in ("blocks.0", "blocks.1", "blocks.2"):
        assert not [*done.leaks(name), *done.strangers(name)]


def test_what_depends_on_the_batchs_shape_alone_is_no_strangers_value() -> None:
    """A mask or a token that is made of the batch size is made anew for any rows."""
    for name in ("transformers_vit", "vision_tokens"):
        done = run(name)
        for block in (n for n in done.calls if re.fullmatch(r"blocks\.\d", n)):
            assert not [*done.leaks(block), *done.strangers(block)], (name, block)


def test_leaks_and_strangers_name_who_made_and_who_read() -> None:
    net = wild.built(wild.DeeplySupervised)
    (leak,) = {read.reader[-1] for read in dry_run(net, wild.SHAPE).leaks("blocks.0")}
    assert leak == ""  # the backbone's own forward adds it
    done = dry_run(wild.built(wild.Passing), wild.SHAPE)
    strangers = list(done.strangers("blocks.1"))
    assert {read.maker[-1] for read in strangers} == {"blocks.0"}
    assert {read.reader[-1] for read in done.leaks("blocks.0")} == {"blocks.1"}


def test_hooks_are_gone_afterwards() -> None:
    net = toys.backbone("plain")
    done = dry_run(net, (3, 12, 12))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    orders = [done.calls[f"blocks.{i}"].order for i in range(3)]
    assert all(one < two for one, two in pairwise(orders))
