"""What a training step keeps, told from shapes alone.

Rules of this file: nothing is computed; a copy of the model without values (PyTorch's meta device)
runs once, and each torch function is asked by rule (``rules``) what it keeps. So a batch of any
size is told in a moment, also for a board that could not hold it. How rows of closed gates pass a
block by, which depends on values, is told here, not run: ``share`` of the batch goes through.

Agreement with ``measured`` is a matter of tests and of ``da3 memory``, which shows both.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from toolchain.core.errors import TrainingError
from toolchain.training.adapt.adaptors import BlockDomain, decide
from toolchain.training.adapt.attached import HEAD, AttachedModel, Trace
from toolchain.training.adapt.dryrun import block_input, first_tensor, output_tensor
from toolchain.training.adapt.loss import training_loss
from toolchain.training.adapt.overrides import SparseUpdate
from toolchain.training.adapt.rows import PROBED
from toolchain.training.lean import Lean
from toolchain.training.lean.mode import TABLE as LEAN_TABLE
from toolchain.training.memory import rules
from toolchain.training.memory.measured import Ledger, Stack, Stored, address, named


@dataclass(frozen=True, slots=True)
class Count:
    """What a step keeps, and the bytes of maps that are under way at once, ``working``.

    The latter are the maps that the forward's code holds at its fullest moment, were nothing kept,
    and the largest one that a gradient flows through. It is an estimate, made for the backward
    pass, whose gradients have the shapes of the maps, with a residual's beside them.
    """

    stored: Stored
    working: int


def analytic(model: AttachedModel, batch: int, *, share: float = 1.0) -> Stored:
    """Return what a training step on ``batch`` pictures keeps; see :func:`count`."""
    return count(model, batch, share=share).stored


def count(model: AttachedModel, batch: int, *, share: float = 1.0) -> Count:
    """Return what a training step on ``batch`` pictures keeps and works with, by rule.

    ``share`` of the rows runs each gated block, rounded up; 1 is the worst case. The model is left
    as it is. Raises TrainingError for a backbone that does not run on shapes alone.
    """
    try:
        with torch.enable_grad():
            asked = _run(model, batch, share)
        with torch.no_grad():  # nothing is kept: what lives is what the code holds
            watched = _run(model, batch, share)
    except (NotImplementedError, RuntimeError) as err:
        raise TrainingError(
            f"{type(model.backbone).__name__} does not run on shapes alone, so that its memory "
            f"cannot be told before it trains: {str(err).splitlines()[0]}",
            fix="measure a step (adapt.memory.measured)",
        ) from err
    stored = asked.ledger.stored(asked.stock)
    stored = replace(stored, unknown=tuple(sorted(asked.unknown)))
    return Count(stored, watched.live.highest + asked.widest)


def _run(model: AttachedModel, batch: int, share: float) -> _Asked:
    """Run a step of a copy without values and return what was asked."""
    shapes = _shapes_of(model)
    ledger = Ledger()
    ledger.ignore(*shapes.parameters(), *shapes.buffers())
    with named(shapes) as stack, torch.device("meta"):
        mode = _Asked(shapes, ledger, stack)
        _step(shapes, mode, batch, share)
    return mode


def _shapes_of(model: AttachedModel) -> AttachedModel:
    """Return a copy without values that trains."""
    memo: dict[int, Any] = {id(model.generator): None, id(model.forced): {}}
    for parameter in model.parameters():
        bare = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        memo[id(parameter)] = bare
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    shapes = copy.deepcopy(model, memo)
    shapes.train()
    for module in shapes.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = shapes.batch_statistics
            module.momentum = module.momentum or 0.1  # a plain mean would count batches by value
    return shapes


class _Live:
    """The bytes of all maps that are alive, and the most there were."""

    def __init__(self) -> None:
        self.highest = 0
        self._held = 0
        self._tensors: set[int] = set()
        self._storages: dict[int, int] = {}  # how many live tensors look into a storage

    def note(self, tensors: Iterable[Tensor]) -> None:
        """Follow tensors until nothing refers to them."""
        for tensor in tensors:
            if id(tensor) in self._tensors:
                continue
            place, size = address(tensor), tensor.untyped_storage().nbytes()
            self._tensors.add(id(tensor))
            self._held += 0 if place in self._storages else size
            self._storages[place] = self._storages.get(place, 0) + 1
            weakref.finalize(tensor, self._drop, id(tensor), place, size)
        self.highest = max(self.highest, self._held)

    def _drop(self, tensor: int, place: int, size: int) -> None:
        self._tensors.discard(tensor)
        self._storages[place] -= 1
        if not self._storages[place]:
            del self._storages[place]
            self._held -= size


class _Asked(TorchFunctionMode):
    """Asks for every torch function what it keeps and books it on the running module."""

    def __init__(self, model: AttachedModel, ledger: Ledger, stack: Stack) -> None:
        super().__init__()
        self.lean = model.lean
        self.parts: dict[int, int] = {}  # trained channels, by the storage of a kernel
        self.stock: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.live, self.widest = _Live(), 0
        self.ledger, self._stack = ledger, stack
        self._asking = self._listing = True
        self._backbone = {name for name, _ in model.backbone.named_modules()} - {""}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and book what it keeps."""
        given = dict(kwargs or {})
        result = func(*args, **given)
        if not self._asking or not isinstance(result, Tensor | tuple | list):
            return result
        part = self._part(func, args, given)
        if part is not None and isinstance(result, Tensor) and not result.requires_grad:
            result = result.requires_grad_().clone()  # its trained channels are no input here
        recorded = any(t.requires_grad for t in rules.tensors((result,)))
        self.note(result)
        if recorded:
            sizes = (t.untyped_storage().nbytes() for t in rules.tensors((result,)))
            self.widest = max(self.widest, *sizes)
            self._ask(func, rules.Call(args, given, result, self.lean, part))
        return result

    def _part(
        self, func: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]
    ) -> int | None:
        """Return how many input channels of a convolution's kernel are trained, if some are."""
        if func is not torch.conv2d or not self.parts:
            return None
        weight = args[1] if len(args) > 1 else given["weight"]
        return self.parts.get(address(weight))

    def note(self, result: Any) -> None:
        """Follow new maps while they live; what is there anyway, or kept, is not among them."""
        if not torch.is_grad_enabled():
            self.live.note(t for t in rules.tensors((result,)) if not self.ledger.has(t))

    def _ask(self, func: Callable[..., Any], call: rules.Call) -> None:
        name = rules.plain_name(func)
        rule = rules.TABLE.get(name)
        if func not in LEAN_TABLE:  # it runs stock, whatever it is called
            call = replace(call, lean=None)
        kept = (rule or rules.general)(call)
        new = sum(self.ledger.count(tensor, self._stack.name) for tensor in kept.tensors)
        new += self.ledger.add(kept.fresh, self._stack.name)
        if rule is None:
            self.unknown.add(name)
        listed = self._listing and self._stack.name in self._backbone and func not in LEAN_TABLE
        if new and listed:
            self.stock[name] = self.stock.get(name, 0) + new

    def keep(self, count: int) -> None:
        """Book bytes on the running module that no function of torch keeps."""
        self.ledger.add(count, self._stack.name)

    @contextmanager
    def unlisted(self) -> Iterator[None]:
        """Ask inside the block of code for the domain's sake: no layer of the backbone runs."""
        self._listing = False
        try:
            yield
        finally:
            self._listing = True

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Ask nothing inside the block of code."""
        self._asking = False
        try:
            yield
        finally:
            self._asking = True


def _step(model: AttachedModel, mode: _Asked, batch: int, share: float) -> None:
    """Run a training forward with its loss."""
    with mode.silent(), mode:
        images = torch.empty(batch, *model.anatomy.input_shape)
        labels = torch.empty(batch, dtype=torch.int64)
        mode.ledger.ignore(images, labels)
        if model.lean is not None:
            images = model.laid_out(images)  # a copy that is kept only where it is used
    mode.note(images)
    seen = Trace()
    _arrange(model, mode, seen, share)
    with mode:
        own, lean = model.overrides, model.lean
        values: dict[str, Tensor] = {}
        if own is not None:
            # Kernels that are made are kept, and so no maps under way.
            with nullcontext() if torch.is_grad_enabled() else mode.silent():
                values = own.values(model.backbone, sparse=lean is None)
            if not torch.is_grad_enabled():
                mode.ledger.ignore(*values.values())
            mode.parts = _trained_parts(model.backbone, own.items(), lean)
        answer = output_tensor(torch.func.functional_call(model.backbone, values, (images,)))
        assert answer is not None
        if model.anatomy.head is None:
            seen.logits = model.domain[HEAD](answer)
        assert seen.logits is not None
        share_of_flops = model.executed_share(seen)
        training_loss(seen.logits, labels, share_of_flops, budget=share, weight=1.0)


def _trained_parts(
    backbone: nn.Module, versions: Iterable[tuple[str, nn.Module]], lean: Lean | None
) -> dict[int, int]:
    if lean is None:
        return {}
    return {
        address(backbone.get_parameter(name)): len(version.index)
        for name, version in versions
        if isinstance(version, SparseUpdate)
    }


def _arrange(model: AttachedModel, mode: _Asked, seen: Trace, share: float) -> None:
    """Give the copy's adapted blocks and its classifier the forward of training."""
    for name, site in model.sites.items():
        block = model.backbone.get_submodule(site.name)
        part = model.domain[name]
        assert isinstance(part, BlockDomain)
        if part.gate is None:
            block.forward = _corrected(block.forward, part, mode)
        else:
            block.forward = _gated(name, block.forward, part, mode, seen, share)
    if model.anatomy.head is not None:

        def answer(_: nn.Module, args: tuple[Tensor, ...], __: object) -> None:
            seen.logits = model.domain[HEAD](args[0].flatten(1) if args[0].dim() == 4 else args[0])

        model.backbone.get_submodule(model.anatomy.head).register_forward_hook(answer)


def _corrected(run: Callable[..., Any], part: BlockDomain, mode: _Asked) -> Callable[..., Any]:
    """Return a block's forward with an adaptor: the addition keeps nothing."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = block_input(args, kwargs)
        output = run(*args, **kwargs)
        y = first_tensor(output)
        assert x is not None
        assert y is not None
        part(x)
        with mode.silent():
            result = torch.empty_like(y, requires_grad=True).clone()
        mode.note(result)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    return forward


def _gated(
    name: str,
    run: Callable[..., Any],
    part: BlockDomain,
    mode: _Asked,
    seen: Trace,
    share: float,
) -> Callable[..., Any]:
    """Return a block's forward for ``share`` of the rows.

    What ``rows`` keeps for it: the places of all rows, and for those that tell the gate something
    (the open ones, and as many of the others as are probed on average) place, weight and what the
    block changed on the coarse grid, at the precision of trained layers' inputs.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = block_input(args, kwargs)
        assert x is not None
        pooled = part.coarse(x)
        correction = part.adaptor(pooled)
        assert part.gate is not None
        logits = part.gate(pooled)
        with mode.unlisted():
            seen.opened[name] = decide(logits, noise=torch.empty(logits.shape))
        batch = x.shape[0]
        open_rows = min(batch, ceil(share * batch))
        alone = len(args) == 1 and args[0] is x and not kwargs
        if alone and open_rows < batch:
            with mode.silent():
                some = x[:open_rows].clone()
            output = run(some)
        else:
            output = run(*args, **kwargs)
        y = first_tensor(output)
        assert y is not None
        seen_rows = batch if not alone else open_rows + ceil((batch - open_rows) / PROBED)
        cells = correction.shape[1:].numel() * seen_rows
        precision = "fp32" if mode.lean is None else mode.lean.keep
        mode.keep(8 * batch + (8 + 4) * seen_rows + rules.compressed(cells, seen_rows, precision))
        with mode.silent():
            result = torch.empty((batch, *y.shape[1:]), requires_grad=True).clone()
        mode.note(result)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    return forward
