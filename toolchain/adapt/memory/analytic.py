"""What a training step keeps, told from shapes alone.

Rules of this file: nothing is computed; a copy of the model without values (PyTorch's meta device)
runs once, and each torch function is asked by rule (``rules``) what it keeps. So a batch of any
size is told in a moment, also for a board that could not hold it. How rows of closed gates pass a
block by, which depends on values, is told here, not run: ``share`` of the batch goes through.

Agreement with ``measured`` is a matter of tests and of ``da3 memory``, which shows both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from toolchain.adapt.adaptors import BlockDomain, decide
from toolchain.adapt.attached import HEAD, AttachedModel, Trace
from toolchain.adapt.budget import training_loss
from toolchain.adapt.dryrun import block_input, first_tensor, output_tensor
from toolchain.adapt.lean import Lean
from toolchain.adapt.lean.mode import TABLE as LEAN_TABLE
from toolchain.adapt.memory import rules
from toolchain.adapt.memory.measured import Ledger, Stack, Stored, address, named
from toolchain.adapt.own import Partial
from toolchain.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Count:
    """What a step keeps, and the bytes of maps that are under way at once, ``working``.

    An estimate: all that goes into and comes out of one function and two more maps beside it, a
    residual and what a block's code still holds; the largest of all functions.
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
    shapes = _shapes_of(model)
    ledger = Ledger()
    ledger.ignore(*shapes.parameters(), *shapes.buffers())
    with named(shapes) as stack, torch.enable_grad(), torch.device("meta"):
        mode = _Asked(shapes, ledger, stack)
        try:
            _step(shapes, mode, batch, share)
        except (NotImplementedError, RuntimeError) as err:
            raise TrainingError(
                f"{type(model.backbone).__name__} does not run on shapes alone, so that its memory "
                f"cannot be told before it trains: {str(err).splitlines()[0]}",
                fix="measure a step (adapt.memory.measured)",
            ) from err
    stored = replace(ledger.stored(mode.stock), unknown=tuple(sorted(mode.unknown)))
    return Count(stored, mode.working)


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
    return shapes


class _Asked(TorchFunctionMode):
    """Asks for every torch function what it keeps and books it on the running module."""

    def __init__(self, model: AttachedModel, ledger: Ledger, stack: Stack) -> None:
        super().__init__()
        self.lean = model.lean
        self.parts: dict[int, int] = {}  # trained channels, by the storage of a kernel
        self.stock: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.working = 0
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
        self._note_maps((*args, *given.values(), result))
        if recorded:
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

    def _note_maps(self, values: Iterable[Any]) -> None:
        sizes = {address(t): t.untyped_storage().nbytes() for t in rules.tensors(values)}
        self.working = max(self.working, sum(sizes.values()) + 2 * max(sizes.values()))

    def _ask(self, func: Callable[..., Any], call: rules.Call) -> None:
        name = rules.plain_name(func)
        rule = rules.TABLE.get(name)
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
    seen = Trace()
    _arrange(model, mode, seen, share)
    with mode:
        own, lean = model.own, model.lean
        values: dict[str, Tensor] = {}
        if own is not None:
            values = own.values(model.backbone, apart=lambda _: lean is not None)
            mode.parts = _trained_parts(values, own.versions(), lean)
        answer = output_tensor(torch.func.functional_call(model.backbone, values, (images,)))
        assert answer is not None
        if model.anatomy.head is None:
            seen.logits = model.domain[HEAD](answer)
        assert seen.logits is not None
        share_of_flops = model.executed_share(seen)
        training_loss(seen.logits, labels, share_of_flops, budget=share, weight=1.0)


def _trained_parts(
    values: Mapping[str, Tensor], versions: Iterable[tuple[str, nn.Module]], lean: Lean | None
) -> dict[int, int]:
    if lean is None:
        return {}
    return {
        address(values[name]): len(version.index)
        for name, version in versions
        if isinstance(version, Partial)
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

    What ``rows`` keeps for it: the places of all rows, and what the block changed on the coarse
    grid, at the precision of trained layers' inputs.
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
        cells = correction.shape[1:].numel() * open_rows
        precision = "fp32" if mode.lean is None else mode.lean.keep
        mode.keep(8 * batch + rules.compressed(cells, open_rows, precision))
        with mode.silent():
            result = torch.empty((batch, *y.shape[1:]), requires_grad=True).clone()
        return (result, *output[1:]) if isinstance(output, tuple) else result

    return forward
