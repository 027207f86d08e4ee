"""What a training step keeps, counted without computing one.

Rules of this file: a copy of the model runs its real forward on fake tensors, which have shapes but
no values. The ledger that counts real steps (``lean.ledger``) counts what autograd keeps of it. So
any batch is counted within about a second, also one that no board could hold. No layer has a rule
of its own. A fake tensor says that it lies on the CPU, so torch picks the CPU's kernels, also for
attention; on the meta device it would pick others, which keep more.

One thing depends on values: which rows pass a closed gate by. Here ``share`` of the batch goes
through the block (``_ByShare``). It is the only code that runs in place of the model's own.

That the count agrees with a measured step is for tests and for ``da3 memory``, which shows both.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from toolchain.core.errors import TrainingError
from toolchain.training.adapt.adaptors import BlockDomain
from toolchain.training.adapt.attached import OWN, AttachedModel
from toolchain.training.adapt.dryrun import without_fast_path
from toolchain.training.adapt.loss import training_loss
from toolchain.training.adapt.rows import PROBED, Rows
from toolchain.training.lean.ledger import Stack, Stored, address, named, stored
from toolchain.training.lean.mode import TABLE as LEAN_TABLE

_PARAMETERS = ("torch::autograd::AccumulateGrad", "TBackward0")


@dataclass(frozen=True, slots=True)
class Count:
    """What a step keeps, and the bytes of maps that are under way at once, ``working``.

    ``working`` is an estimate: the maps that the forward's code would hold at its fullest moment if
    nothing were kept, and the largest gradient. It stands for the backward pass, whose gradients
    have the shapes of the maps, with those of a residual beside them.
    """

    stored: Stored
    working: int


def analytic(model: AttachedModel, batch: int, *, share: float = 1.0) -> Stored:
    """Return what a training step on ``batch`` pictures keeps; see :func:`count`."""
    return count(model, batch, share=share).stored


def count(model: AttachedModel, batch: int, *, share: float = 1.0) -> Count:
    """Return what a training step on ``batch`` pictures keeps and works with, without running it.

    ``share`` of the rows runs each gated block, rounded up; 1 is the worst case. The model is left
    as it is. Raises TrainingError for a backbone that does not run on shapes alone.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    shapes = _without_values(model, fake)
    functions = _Functions(shapes)
    _part_by_share(shapes, share, functions)
    try:
        with fake:
            return _count(shapes, functions, batch, share)
    except (NotImplementedError, RuntimeError) as err:
        raise TrainingError(
            f"{type(model.backbone).__name__} does not run on shapes alone, so that its memory "
            f"cannot be told before it trains: {str(err).splitlines()[0]}",
            fix="measure a step (training.memory.measured)",
        ) from err


def _count(shapes: AttachedModel, functions: _Functions, batch: int, share: float) -> Count:
    """Run a step with gradients for what it keeps, and one without for the maps under way."""
    images = torch.empty(batch, *shapes.anatomy.input_shape)
    labels = torch.empty(batch, dtype=torch.int64)
    widest = 0

    def step() -> Tensor:
        # Lean layers get their pictures laid out anew, in a copy that is under way as well.
        trace = shapes.trace(images if shapes.lean is None else shapes.laid_out(images), maps=False)
        assert trace.logits is not None
        executed = shapes.executed_share(trace)
        return training_loss(trace.logits, labels, executed, budget=share, weight=1.0)

    def watched() -> Tensor:
        nonlocal widest
        with functions:
            loss = step()
        widest = _widest_gradient(loss)
        return loss

    with torch.enable_grad():
        counted = stored(shapes, watched, ignored=(images, labels), notify=functions.book)
    # Nothing is kept, so what lives is what code holds.
    with torch.no_grad(), without_fast_path(), named(shapes) as stack:
        live = _Live(stack, (*shapes.parameters(), *shapes.buffers(), images, labels))
        with live:
            step()
    return Count(replace(counted, stock=functions.stock), live.highest + widest)


def _without_values(model: AttachedModel, fake: FakeTensorMode) -> AttachedModel:
    """Return a copy on fake tensors that trains on a CPU."""

    def bare(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")

    # deepcopy takes what stands in the memo in place of copying it: no value is read or allocated.
    memo: dict[int, Any] = {id(model.generator): None, id(model.forced): {}}
    with fake:
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(bare(parameter), parameter.requires_grad)
        memo |= {id(buffer): bare(buffer) for buffer in model.buffers()}
    shapes = copy.deepcopy(model, memo)
    shapes.train()
    for module in shapes.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = module.momentum or 0.1  # a plain mean would count batches by value
    return shapes


class _ByShare(Rows):
    """Rows of a batch whose decisions cannot be read; of closed ones the mean number is probed."""

    def probes(self, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return as many rows as are probed on average, rounded up."""
        return self.closed[: ceil(len(self.closed) / PROBED)]


def _part_by_share(shapes: AttachedModel, share: float, functions: _Functions) -> None:
    """Let ``share`` of the rows run each gated block, and list no function that decides so."""

    def rows_of(decision: Tensor) -> Rows:
        functions.listing = True
        order, batch = torch.arange(len(decision)), len(decision)
        # Which rows is of no matter to sizes, only how many.
        opened = min(batch, ceil(share * batch))
        return _ByShare(order[:opened], order[opened:])

    def after_gate(*_: object) -> None:
        functions.listing = False

    shapes.rows_of = rows_of
    for part in shapes.domain.children():
        if isinstance(part, BlockDomain) and part.gate is not None:
            part.gate.register_forward_hook(after_gate)


class _Functions(TorchFunctionMode):
    """Lists the functions without a lean form, with what they keep in layers of the backbone."""

    def __init__(self, shapes: AttachedModel) -> None:
        super().__init__()
        self.stock: dict[str, int] = {}
        self.listing = True
        self._running: Callable[..., Any] | None = None
        self._layers = {name for name, _ in shapes.backbone.named_modules()} - {""}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and know meanwhile that it runs."""
        self._running = func
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._running = None

    def book(self, layer: str, size: int) -> None:
        """Note what the running function keeps; lean layers keep theirs outside of functions."""
        func = self._running
        if func is None or func in LEAN_TABLE or not (size and self.listing):
            return
        if layer in self._layers:
            name = getattr(func, "__name__", type(func).__name__).strip("_")
            self.stock[name] = self.stock.get(name, 0) + size


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows all maps while they are alive; ``highest`` is the most bytes that there were.

    It hears of each operator. A mode of functions would hear of PyTorch's own attention once, and
    not of the maps inside.

    ``there``: tensors that are there anyway. What is made of a domain's own tensors is none of
    them: a training keeps it.
    """

    def __init__(self, stack: Stack, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.highest = 0
        self._bytes = 0
        self._stack = stack
        self._there = {address(tensor) for tensor in there}
        self._tensors: set[int] = set()
        self._storages: dict[int, int] = {}  # how many live tensors look into a storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and follow the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if not self._stack.name.startswith(f"{OWN}.") and address(tensor) not in self._there:
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        if id(tensor) in self._tensors:
            return
        place, size = address(tensor), tensor.untyped_storage().nbytes()
        self._tensors.add(id(tensor))
        self._bytes += 0 if place in self._storages else size
        self._storages[place] = self._storages.get(place, 0) + 1
        # A finalizer, as the tensor must not be kept alive by being watched.
        weakref.finalize(tensor, self._drop, id(tensor), place, size)
        self.highest = max(self.highest, self._bytes)

    def _drop(self, tensor: int, place: int, size: int) -> None:
        self._tensors.discard(tensor)
        self._storages[place] -= 1
        if not self._storages[place]:
            del self._storages[place]
            self._bytes -= size


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in what a function returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _widest_gradient(loss: Tensor) -> int:
    """Return the bytes of the largest gradient that flows back from a loss, parameters' left out.

    Autograd's graph knows the shape of the gradient that each of its nodes takes. A stock linear
    layer turns its weight, so a node of that name takes a parameter's gradient, too.
    """
    widest, nodes, met = 0, [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in met or node.name() in _PARAMETERS:
            continue
        met.add(node)
        for gradient in node._input_metadata:
            widest = max(widest, prod(gradient.shape) * gradient.dtype.itemsize)
        nodes += [following for following, _ in node.next_functions]
    return widest
