"""How much each channel of a kernel would contribute to learning: what sparse decides by.

Rules of this file: it measures, and ``adapt.sparse`` chooses; nothing is trained or changed here.
A measurement keeps as much as training the kernels whole would keep. It is meant for the machine
that prepares the update, as in the paper (Lin et al., NeurIPS 2022, section 3.2), not for a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import HEAD, AttachedModel
from toolchain.training.adapt.blocks import Anatomy
from toolchain.training.adapt.guards import frozen
from toolchain.training.adapt.overrides import Selection
from toolchain.training.adapt.sparse import Contribution, Kernel, candidates, choose
from toolchain.training.data.splits import DomainData
from toolchain.training.lean import Lean
from toolchain.training.loop.baseline import probe
from toolchain.training.loop.evaluation import as_tensors
from toolchain.training.loop.progress import Tick, unheard

BATCH = 32
BATCHES = 16


def search(
    backbone: nn.Module,
    anatomy: Anatomy,
    data: DomainData,
    recipe: Recipe,
    *,
    batches: int = BATCHES,
    tick: Tick = unheard,
) -> Selection:
    """Return the input channels to update, rising, by kernel: ``{"layer3.0.conv1.weight": ...}``.

    It measures contribution on ``batches`` batches of 32 pictures of ``data.train``, drawn by
    ``recipe.train.seed``, with the head of the head-only baseline. The budget is
    ``recipe.adaptor.update_kib``. ``tick`` hears how many pictures are done. Raises TrainingError
    when no channel fits (the message names the least budget that would), when none contributes, or
    when the backbone has no candidate.
    """
    kernels = candidates(backbone, anatomy)
    classes = len(data.classes)
    model = AttachedModel(backbone, anatomy, HEAD, classes, recipe.adaptor, lean=Lean())
    # With a random head the gradients would say how to mend the head, not what the kernels lack.
    batch = min(BATCH, recipe.train.batch)
    baseline = probe(model, data, recipe.preprocess, batch=batch, tick=tick)
    model.domain[HEAD].load_state_dict({"weight": baseline.weight, "bias": baseline.bias})
    contributions = _contributions(model, kernels, _calibration(data, recipe, batches, tick))
    return choose(kernels, contributions, recipe.adaptor.update_kib)


def _calibration(
    data: DomainData, recipe: Recipe, batches: int, tick: Tick
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield at most ``batches`` batches of training pictures, each picture at most once."""
    order = np.random.default_rng(recipe.train.seed).permutation(len(data.train))
    count = min(len(order), batches * BATCH)
    for start in range(0, count, BATCH):
        tick(start, count)
        yield as_tensors(recipe.preprocess, *data.train.batch(order[start : start + BATCH]))


def _contributions(
    model: AttachedModel, kernels: Sequence[Kernel], batches: Iterator[tuple[Tensor, Tensor]]
) -> list[Contribution]:
    """Return by kernel the squared gradients, summed over batches and each channel's weights.

    A hook adds each gradient to its sum and drops it, so only one is in memory at a time.
    """
    weights = {model.backbone.get_parameter(kernel.name): kernel for kernel in kernels}
    totals: Mapping[str, Contribution] = {k.name: np.zeros(k.channels) for k in kernels}

    def collect(weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        kernel = weights[weight]
        # A depthwise kernel [C, 1, kH, kW] has its channels first.
        depthwise = weight.shape[1] != kernel.channels
        other_axes = (1, 2, 3) if depthwise else (0, 2, 3)
        totals[kernel.name][:] += weight.grad.double().square().sum(other_axes).numpy()
        weight.grad = None

    with ExitStack() as stack, frozen(model.backbone, tuple(weights)):
        for weight in weights:
            hook = weight.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
            stack.callback(hook.remove)
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
    return [totals[kernel.name] for kernel in kernels]
