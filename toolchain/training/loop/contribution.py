"""How much each channel of a kernel would contribute to learning: what sparse decides by.

Rules of this file: it measures, and ``adapt.sparse`` chooses; nothing is trained or changed here.
A measurement keeps as much as training the kernels whole would keep. It is meant for the machine
that prepares the update, as in the paper (Lin et al., NeurIPS 2022, section 3.2), not for a device.
What it takes is told before it begins, and it keeps to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.core.errors import MemoryBudgetError, TrainingError
from toolchain.core.timing import Notify
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
from toolchain.training.memory.analytic import count
from toolchain.training.memory.fit import mib
from toolchain.training.memory.head import ROOM, head_fit

BATCH = 32
BATCHES = 16
_FLOAT = 4
_SQUARED = _FLOAT + 8 + 8  # of one kernel at a time: its gradient, that in float64, and its square


def search(
    backbone: nn.Module,
    anatomy: Anatomy,
    data: DomainData,
    recipe: Recipe,
    *,
    batches: int = BATCHES,
    memory: int | None = None,
    tick: Tick = unheard,
    notify: Notify = lambda _: None,
) -> Selection:
    """Return the input channels to update, rising, by kernel: ``{"layer3.0.conv1.weight": ...}``.

    It measures contribution on ``batches`` batches of 32 pictures of ``data.train``, drawn by
    ``recipe.train.seed``, with the head of the head-only baseline. The budget is
    ``recipe.adaptor.update_kib``. ``memory``: the bytes that it may take beside the weights.
    ``tick`` hears how many pictures are done, ``notify`` what it will take. Raises TrainingError
    when no channel fits (the message names the least budget that would), when none contributes, or
    when the backbone has no candidate, and MemoryBudgetError if ``memory`` does not hold it.
    """
    kernels = candidates(backbone, anatomy)
    classes = len(data.classes)
    model = AttachedModel(backbone, anatomy, HEAD, classes, recipe.adaptor, lean=Lean())
    room = _room(model, kernels, min(BATCH, len(data.train)), memory, notify)
    # With a random head the gradients would say how to mend the head, not what the kernels lack.
    # Without gradients PyTorch's own kernels run: half of the pictures, as before the steps.
    batch = max(1, min(BATCH, recipe.train.batch) // 2)
    baseline = probe(model, data, recipe.preprocess, batch=batch, room=room, tick=tick)
    model.domain[HEAD].load_state_dict({"weight": baseline.weight, "bias": baseline.bias})
    contributions = _contributions(model, kernels, _calibration(data, recipe, batches, tick))
    return choose(kernels, contributions, recipe.adaptor.update_kib)


def need(model: AttachedModel, kernels: Sequence[Kernel], batch: int) -> int:
    """Return the bytes that a measurement on ``batch`` pictures takes beside the weights.

    It counts the pictures and every kernel's backward pass. Raises TrainingError where that cannot
    be counted (``memory.analytic.count``).
    """
    weights = [model.backbone.get_parameter(kernel.name) for kernel in kernels]
    with frozen(model.backbone, tuple(weights)):
        counted = count(model, batch)
    largest = max((weight.numel() for weight in weights), default=0)
    pictures = batch * prod(model.anatomy.input_shape) * (_FLOAT + 1)
    head = head_fit(model.anatomy.features, model.classes).bytes
    return max(counted.stored.bytes + counted.working + _SQUARED * largest, head) + pictures


def _room(
    model: AttachedModel,
    kernels: Sequence[Kernel],
    batch: int,
    memory: int | None,
    notify: Notify,
) -> int:
    """Return what the search may take, and tell it. Raises MemoryBudgetError."""
    what = "search for what to update"
    try:
        needed = need(model, kernels, batch)
    except TrainingError as err:
        if memory is not None:
            raise
        notify(f"{what}: {err.message}")
        return ROOM
    if memory is not None and needed > memory:
        raise MemoryBudgetError(
            f"{what}: it needs {mib(needed)} beside the weights, expected at most {mib(memory)}",
            fix="search on a machine with that much, without a budget; or train bias or da3",
        )
    notify(f"{what}: at most {mib(needed)} beside the weights, pictures included")
    return needed


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
