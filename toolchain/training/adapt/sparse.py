"""Which channels of which kernels the method sparse updates, within a memory budget.

Rules of this file: it chooses by numbers that others measure (``loop.contribution``), or by size
alone; ``methods`` builds the domain's parts from the choice. It trains and changes nothing.
Candidates are plain and depthwise convolutions from the first block on.

After Lin et al. (On-Device Training Under 256KB Memory, NeurIPS 2022, section 3.2): contribution
analysis, then layers and channel ratios under a budget. Three things differ from the paper and are
our choice:

* A channel's contribution is the first-order decrease of the loss: the sum, over calibration
  batches, of its weights' squared gradients. That takes one backward pass per batch. The paper
  trains once per layer and compares accuracies.
* The choice is no evolutionary search. For every possible first layer it is a multiple-choice
  knapsack, solved exactly by dynamic programming over whole KiB.
* The budget is that of one sample in fp32. It counts the kept input channels of every chosen
  kernel, and what frozen lean layers keep from the first of them on (bits of ReLUs).
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
from toolchain.training.adapt.overrides import Selection
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.lean.ledger import Ledger

EIGHTHS = (0, 1, 2, 4, 8)
"""The paper's channel ratios: none, 1/8, 1/4, 1/2, all."""
KIB = 1024

Contribution = npt.NDArray[np.float64]
"""What each input channel of one kernel contributes, float64 [channels]."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A convolution that can be updated in part.

    ``channel_bytes``: one input channel of one sample, float32. ``tail_bytes``: what the layers
    from this one on keep of one sample when only additive tensors are trained.
    """

    name: str
    channels: int
    channel_bytes: int
    tail_bytes: int

    def counts(self) -> list[int]:
        """Return how many channels each ratio takes, rounded up; equal counts stand once."""
        return sorted({-(-self.channels * part // 8) for part in EIGHTHS})


def by_size(backbone: nn.Module, anatomy: Anatomy, update_kib: int) -> Selection:
    """Return the channels that hold the most weights within ``update_kib``; it needs no data.

    For tables of memory, where it does not matter which channels are updated. Raises as ``choose``.
    """
    kernels = candidates(backbone, anatomy)
    sizes = [backbone.get_parameter(kernel.name).numel() / kernel.channels for kernel in kernels]
    contributions = [np.full(k.channels, size) for k, size in zip(kernels, sizes, strict=True)]
    return choose(kernels, contributions, update_kib)


def choose(
    kernels: Sequence[Kernel], contributions: Sequence[Contribution], update_kib: int
) -> Selection:
    """Return the channels with the highest sum of contributions that ``update_kib`` holds.

    ``kernels`` in the order in which they run, ``contributions`` [channels] of each. Sizes count in
    whole KiB, rounded up, so the answer is the best one for those sizes and never above the budget.
    Of equal answers it takes the later kernels and the fewer channels. Raises TrainingError when no
    channel fits or none contributes.
    """
    # A stable sort: equal channels are ranked alike on every machine.
    ranked = [np.argsort(-values, kind="stable") for values in contributions]
    options = [
        [(count, _kib(count * kernel.channel_bytes)) for count in kernel.counts()]
        for kernel in kernels
    ]
    _check_fits(kernels, options, update_kib)
    # More room than all kernels together can fill would only lengthen the table.
    room = min(update_kib, sum(costs[-1][1] for costs in options))
    # The knapsack goes from the last kernel to the first. best[kib] is the largest contribution of
    # the kernels looked at so far within that many KiB; taken[kernel, kib] is the row of
    # options[kernel] that reaches it.
    best = np.zeros(room + 1)
    taken = np.zeros((len(kernels), room + 1), np.uint8)
    top, first, left = 0.0, len(kernels), 0
    for place in reversed(range(len(kernels))):
        sums = np.concatenate([[0.0], np.cumsum(contributions[place][ranked[place]])])
        reached = np.full((len(options[place]), room + 1), -np.inf)
        for row, (count, cost) in enumerate(options[place]):
            if cost <= room:
                # Within k KiB this option leaves k - cost for the later kernels.
                reached[row, cost:] = best[: room + 1 - cost] + sums[count]
        # Of equal options argmax takes the first, which has the fewer channels.
        taken[place], best = reached.argmax(0), reached.max(0)
        # If this kernel is the first one updated, its tail's bits come off the budget as well: an
        # earlier start may reach more kernels and still leave less room for their channels.
        free = min(room, update_kib - _kib(kernels[place].tail_bytes))
        # Strictly greater: an equal answer from a later start was there first and stays.
        if free >= 0 and best[free] > top:
            top, first, left = float(best[free]), place, free
    if first == len(kernels):
        raise TrainingError(
            f"expected a channel that contributes within {update_kib} KiB, got none",
            fix="raise update_kib, or use the method bias",
        )
    # Walk the table forwards from the best first kernel and read off each kernel's option.
    selection: dict[str, tuple[int, ...]] = {}
    for place in range(first, len(kernels)):
        count, cost = options[place][taken[place, left]]
        left -= cost
        if count:
            selection[kernels[place].name] = tuple(sorted(ranked[place][:count].tolist()))
    return selection


def _kib(size: int) -> int:
    return -(-size // KIB)


def _check_fits(
    kernels: Sequence[Kernel], options: Sequence[Sequence[tuple[int, int]]], update_kib: int
) -> None:
    """Raise TrainingError where the budget does not hold the cheapest option of any kernel."""
    if not kernels:
        raise TrainingError(
            "expected plain or depthwise convolutions inside the blocks to update, got none",
            fix="use the method bias or da3",
        )
    # Row 0 of the options takes no channel, row 1 takes the fewest.
    least = min(
        _kib(kernel.tail_bytes) + costs[1][1]
        for kernel, costs in zip(kernels, options, strict=True)
    )
    if least > update_kib:
        raise TrainingError(
            f"expected a budget that holds some channels of one kernel, got {update_kib} KiB",
            fix=f"set adaptor.update_kib to at least {least}",
        )


def candidates(backbone: nn.Module, anatomy: Anatomy) -> list[Kernel]:
    """Return the kernels that can be updated, in the order in which they run.

    It runs zeros [1, C, H, W] once through frozen lean layers and counts the bytes that they keep.
    Left out are the stem, grouped kernels, those that run twice or pad by copying, and the
    classifier.
    """
    convs = {
        module: f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and name != anatomy.head and _divisible(module)
    }
    runs: list[tuple[nn.Conv2d, Tensor, int]] = []
    inside: list[bool] = []  # empty until the first block runs: the stem is no candidate
    ledger = Ledger()
    ledger.ignore(*backbone.parameters(), *backbone.buffers())

    def pack(tensor: Tensor) -> Tensor:
        ledger.count(tensor, "")
        return tensor

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = block_input(args, kwargs)
        if inside and isinstance(module, nn.Conv2d) and x is not None:
            runs.append((module, x, ledger.stored().bytes))

    # The picture asks for a gradient, so that every layer keeps what an additive update needs.
    image = torch.zeros(1, *anatomy.input_shape, requires_grad=True)
    first = backbone.get_submodule(anatomy.sites[0].name)
    with ExitStack() as stack, frozen(backbone):
        stack.callback(first.register_forward_pre_hook(lambda *_: inside.append(True)).remove)
        for conv in convs:
            stack.callback(conv.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.enter_context(LeanMode(Lean()))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        backbone(image)
    # Each `before` was read before its layer ran, so the tail holds what that layer keeps, too.
    total = ledger.stored().bytes
    times = [module for module, _, _ in runs]
    return [
        Kernel(
            name=convs[module],
            channels=module.in_channels,
            channel_bytes=4 * x.shape[-2] * x.shape[-1],
            tail_bytes=total - before,
        )
        for module, x, before in runs
        if times.count(module) == 1
    ]


def _divisible(conv: nn.Conv2d) -> bool:
    """Tell whether a lean convolution can train single input channels of this kernel."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return (conv.groups == 1 or depthwise) and conv.padding_mode == "zeros"
