"""Which channels of which kernels the method sparse updates, within a memory budget.

Rules of this file: it measures and chooses; ``methods`` makes parts of the choice, and nothing is
trained or changed here. Candidates are plain and depthwise convolutions from the first block on.

After Lin et al. (On-Device Training Under 256KB Memory, NeurIPS 2022, section 3.2): contribution
analysis, then layers and channel ratios under a budget. What differs from the paper, and is our
choice:

* contribution is the first-order decrease of the loss, one backward pass, and not the accuracy of
  as many trainings as there are layers: a channel's is the sum, over calibration batches, of its
  weights' squared gradients;
* the choice is no evolutionary search: for every first layer a multiple-choice knapsack, solved
  exactly by dynamic programming over whole KiB;
* the budget is that of one sample in fp32: the kept input channels of every chosen kernel, and what
  frozen lean layers keep from the first of them on (bits of ReLUs).

The search itself keeps what training the kernels whole would keep; it is meant for the machine
that prepares the update, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolchain.core.errors import TrainingError
from toolchain.training.adapt.blocks import Anatomy
from toolchain.training.adapt.dryrun import block_input
from toolchain.training.adapt.guards import frozen
from toolchain.training.adapt.methods import Selection
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.memory.measured import Ledger

EIGHTHS = (0, 1, 2, 4, 8)
"""The paper's channel ratios: none, 1/8, 1/4, 1/2, all."""
KIB = 1024

Worth = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A convolution that can be updated in part.

    ``channel_bytes``: one input channel of one sample, float32. ``tail_bytes``: what the layers
    from this one on keep of one sample when nothing but additive tensors is trained.
    """

    name: str
    channels: int
    channel_bytes: int
    tail_bytes: int

    def counts(self) -> list[int]:
        """Return how many channels each ratio takes, rounded up; equal counts stand once."""
        return sorted({-(-self.channels * part // 8) for part in EIGHTHS})


def by_size(backbone: nn.Module, anatomy: Anatomy, update_kib: int) -> Selection:
    """Return the channels that hold the most weights within ``update_kib``: no data are needed.

    For tables of memory, where it does not matter which channels are updated. Raises as ``search``.
    """
    kernels = candidates(backbone, anatomy)
    sizes = [backbone.get_parameter(kernel.name).numel() / kernel.channels for kernel in kernels]
    worth = [np.full(k.channels, size) for k, size in zip(kernels, sizes, strict=True)]
    return choose(kernels, worth, update_kib)


def choose(kernels: Sequence[Kernel], worth: Sequence[Worth], update_kib: int) -> Selection:
    """Return the channels with the highest sum of ``worth`` that ``update_kib`` holds.

    ``kernels`` in the order in which they run, ``worth`` [channels] of each. Sizes count in whole
    KiB, rounded up, so the answer is the best for those and never above the budget. Of equals, the
    later kernels and the fewer channels are taken. Raises TrainingError as ``search`` does.
    """
    ranked = [np.argsort(-values, kind="stable") for values in worth]
    options = [
        [(count, _kib(count * kernel.channel_bytes)) for count in kernel.counts()]
        for kernel in kernels
    ]
    _check_fits(kernels, options, update_kib)
    room = min(update_kib, sum(costs[-1][1] for costs in options))
    best = np.zeros(room + 1)  # by KiB: the most that the kernels looked at so far are worth
    taken = np.zeros((len(kernels), room + 1), np.uint8)
    top, first, left = 0.0, len(kernels), 0
    for place in reversed(range(len(kernels))):
        sums = np.concatenate([[0.0], np.cumsum(worth[place][ranked[place]])])
        found = np.full((len(options[place]), room + 1), -np.inf)
        for row, (count, cost) in enumerate(options[place]):
            if cost <= room:
                found[row, cost:] = best[: room + 1 - cost] + sums[count]
        taken[place], best = found.argmax(0), found.max(0)
        free = min(room, update_kib - _kib(kernels[place].tail_bytes))
        if free >= 0 and best[free] > top:
            top, first, left = float(best[free]), place, free
    if first == len(kernels):
        raise TrainingError(
            f"expected a channel that contributes within {update_kib} KiB, got none",
            fix="raise update_kib, or use the method bias",
        )
    chosen: dict[str, tuple[int, ...]] = {}
    for place in range(first, len(kernels)):
        count, cost = options[place][taken[place, left]]
        left -= cost
        if count:
            chosen[kernels[place].name] = tuple(sorted(ranked[place][:count].tolist()))
    return chosen


def _kib(size: int) -> int:
    return -(-size // KIB)


def _check_fits(
    kernels: Sequence[Kernel], options: Sequence[Sequence[tuple[int, int]]], update_kib: int
) -> None:
    if not kernels:
        raise TrainingError(
            "expected plain or depthwise convolutions inside the blocks to update, got none",
            fix="use the method bias or da3",
        )
    least = min(_kib(k.tail_bytes) + own[1][1] for k, own in zip(kernels, options, strict=True))
    if least > update_kib:
        raise TrainingError(
            f"expected a budget that holds some channels of one kernel, got {update_kib} KiB",
            fix=f"set adaptor.update_kib to at least {least}",
        )


def candidates(backbone: nn.Module, anatomy: Anatomy) -> list[Kernel]:
    """Return the kernels that can be updated, in the order in which they run.

    One forward of zeros [1, C, H, W] through frozen lean layers, whose kept bytes are counted.
    Left out are the stem, grouped kernels, those that run twice or pad by copying, and the
    classifier.
    """
    convs = {
        module: f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and name != anatomy.head and _divisible(module)
    }
    runs: list[tuple[nn.Conv2d, Tensor, int]] = []
    inside: list[bool] = []
    kept = Ledger()
    kept.ignore(*backbone.parameters(), *backbone.buffers())

    def keep(tensor: Tensor) -> Tensor:
        kept.count(tensor, "")
        return tensor

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = block_input(args, kwargs)
        if inside and isinstance(module, nn.Conv2d) and x is not None:
            runs.append((module, x, kept.stored().bytes))

    image = torch.zeros(1, *anatomy.input_shape, requires_grad=True)
    first = backbone.get_submodule(anatomy.sites[0].name)
    with ExitStack() as stack, frozen(backbone):
        stack.callback(first.register_forward_pre_hook(lambda *_: inside.append(True)).remove)
        for conv in convs:
            stack.callback(conv.register_forward_pre_hook(seen, with_kwargs=True).remove)
        stack.enter_context(LeanMode(Lean()))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t))
        backbone(image)
    whole = kept.stored().bytes
    times = [module for module, _, _ in runs]
    return [
        Kernel(convs[m], m.in_channels, 4 * x.shape[-2] * x.shape[-1], whole - before)
        for m, x, before in runs
        if times.count(m) == 1
    ]


def _divisible(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return (conv.groups == 1 or depthwise) and conv.padding_mode == "zeros"
