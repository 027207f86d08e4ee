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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.core.errors import TrainingError
from toolchain.pictures.preprocess import normalise
from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import HEAD, AttachedModel
from toolchain.training.adapt.blocks import Anatomy
from toolchain.training.adapt.dryrun import block_input
from toolchain.training.adapt.methods import Selection
from toolchain.training.data.splits import DomainData
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.loop.baseline import probe
from toolchain.training.memory.measured import Ledger

EIGHTHS = (0, 1, 2, 4, 8)
"""The paper's channel ratios: none, 1/8, 1/4, 1/2, all."""
BATCH = 32
BATCHES = 16
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


def search(
    backbone: nn.Module,
    anatomy: Anatomy,
    data: DomainData,
    recipe: Recipe,
    *,
    classes: int,
    batches: int = BATCHES,
) -> Selection:
    """Return the input channels to update, rising, by kernel: ``{"layer3.0.conv1.weight": ...}``.

    Contribution is measured on ``batches`` batches of 32 pictures of ``data.train``, drawn by
    ``recipe.train.seed``, at the head-only baseline; the budget is ``recipe.adaptor.update_kib``.
    Raises TrainingError when no channel fits (the least that would is named), when none
    contributes, or when the backbone has no candidate.
    """
    kernels = candidates(backbone, anatomy)
    model = AttachedModel(backbone, anatomy, HEAD, classes, recipe.adaptor, lean=Lean())
    found = probe(model, data, recipe.preprocess)
    model.domain[HEAD].load_state_dict({"weight": found.weight, "bias": found.bias})
    worth = _contributions(model, kernels, _calibration(data, recipe, batches))
    return choose(kernels, worth, recipe.adaptor.update_kib)


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
    with ExitStack() as stack, _frozen(backbone):
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


@contextmanager
def _frozen(backbone: nn.Module, trained: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Let only ``trained`` ask for gradients, in evaluation mode; all is put back at the end."""
    before = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    training = {module: module.training for module in backbone.modules()}
    backbone.eval().requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, asked in before.items():
            parameter.requires_grad_(asked)
        for module, mode in training.items():
            module.training = mode


def _calibration(data: DomainData, recipe: Recipe, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield at most ``batches`` batches of training pictures, each picture at most once."""
    order = np.random.default_rng(recipe.train.seed).permutation(len(data.train))
    for start in range(0, min(len(order), batches * BATCH), BATCH):
        pictures, labels = data.train.batch(order[start : start + BATCH])
        yield torch.from_numpy(normalise(recipe.preprocess, pictures)), torch.from_numpy(labels)


def _contributions(
    model: AttachedModel, kernels: Sequence[Kernel], batches: Iterator[tuple[Tensor, Tensor]]
) -> list[Worth]:
    """Return by kernel the squared gradients, summed over batches and each channel's weights.

    A gradient is summed up and dropped as soon as it is there, so there is one at a time.
    """
    weights = {model.backbone.get_parameter(kernel.name): kernel for kernel in kernels}
    totals: Mapping[str, Worth] = {kernel.name: np.zeros(kernel.channels) for kernel in kernels}

    def collect(weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        kernel = weights[weight]
        # A depthwise kernel [C, 1, kH, kW] has its channels first.
        depthwise = weight.shape[1] != kernel.channels
        over = (1, 2, 3) if depthwise else (0, 2, 3)
        totals[kernel.name][:] += weight.grad.double().square().sum(over).numpy()
        weight.grad = None

    with ExitStack() as stack, _frozen(model.backbone, tuple(weights)):
        for weight in weights:
            hook = weight.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
            stack.callback(hook.remove)
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
    return [totals[kernel.name] for kernel in kernels]
