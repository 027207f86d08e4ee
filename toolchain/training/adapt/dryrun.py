"""Run a backbone once and note every module's input and output.

Rules of this file: one picture of zeros, evaluation mode, no gradient. Afterwards the backbone is
as it was before, hooks and mode included. It draws no conclusions (``blocks`` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolchain.core.errors import AttachError


@dataclass(slots=True)
class ModuleCall:
    """What hooks saw of one module: ``count`` runs, and the last run's input and output maps.

    The tensors themselves are noted, so that identity can be compared. ``input_version`` and
    ``output_version`` are PyTorch's counts of in-place writes to them, when the module was entered
    and left.
    """

    count: int = 0
    input: Tensor | None = None
    output: Tensor | None = None
    input_version: int = 0
    output_version: int = 0


def first_tensor(value: object) -> Tensor | None:
    """Return the map in a block's argument or result: itself, or a tuple's first entry."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return a block's input map: the first positional argument, else the first keyword tensor."""
    if args:
        return first_tensor(args[0])
    return next((v for v in kwargs.values() if isinstance(v, Tensor)), None)


def output_tensor(output: object) -> Tensor | None:
    """Return the tensor that a backbone returns (plain, ``.logits``, ``.pooler_output``)."""
    for name in ("logits", "pooler_output"):
        inner = getattr(output, name, None)
        if isinstance(inner, Tensor):
            return inner
    return first_tensor(output)


def _picture(backbone: nn.Module, shape: tuple[int, ...]) -> Tensor:
    # A backbone in another precision than float32 runs on pictures of its own dtype.
    reference = next(backbone.parameters(), torch.zeros(1))
    return torch.zeros(1, *shape, dtype=reference.dtype)


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    """Put a backbone into evaluation, without gradient, inside the block of code."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)


def runs_channels_last(backbone: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell whether a backbone runs on pictures ``shape`` (C, H, W) whose channels lie last.

    A backbone that takes a map's ``view`` does not.
    """
    if len(shape) != 3:
        return False
    picture = _picture(backbone, shape).contiguous(memory_format=torch.channels_last)
    try:
        with _evaluating(backbone):
            backbone(picture)
    except RuntimeError:
        return False
    return True


def dry_run(
    backbone: nn.Module, shape: tuple[int, ...]
) -> tuple[dict[str, ModuleCall], object, FlopCounterMode]:
    """Return the calls by module name, the backbone's output, and the operations counted.

    ``shape`` is without the batch. Raises AttachError when the backbone does not run on it.
    """
    calls = {name: ModuleCall() for name, _ in backbone.named_modules()}

    def enter(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            call = calls[name]
            call.input = block_input(args, kwargs)
            call.input_version = 0 if call.input is None else call.input._version

        return hook

    def leave(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            call = calls[name]
            call.count += 1
            call.output = first_tensor(output)
            call.output_version = 0 if call.output is None else call.output._version

        return hook

    # Every module gets hooks, not only likely blocks: the layout of a block's map is read off the
    # layers inside, and the classifier is found by the identity of its output.
    handles = [
        handle
        for name, module in backbone.named_modules()
        for handle in (
            module.register_forward_pre_hook(enter(name), with_kwargs=True),
            module.register_forward_hook(leave(name)),
        )
    ]
    counter = FlopCounterMode(display=False)
    try:
        with _evaluating(backbone), counter:
            output = backbone(_picture(backbone, shape))
    except Exception as err:  # a backbone's forward is the caller's code and may raise anything
        raise AttachError(
            f"{type(backbone).__name__} does not run on an input of shape [1, "
            f"{', '.join(map(str, shape))}]: {type(err).__name__}: {err}",
            fix="give the shape it expects: attach(..., input_shape=(3, 224, 224))",
        ) from err
    finally:
        for handle in handles:
            handle.remove()
    return calls, output, counter
