"""What a forward needs of somebody else's backbone: checks, and changes that are undone.

Rules of this file: there are two kinds of functions. A ``refuse_...`` looks at one thing that would
make a domain learn nothing, or learn something wrong, and raises with the fix. A context manager
changes a backbone for one block of code and undoes the change, whatever happens there.
``attached`` joins the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from toolchain.core.errors import AttachError
from toolchain.training.adapt.overrides import Overrides, SparseUpdate
from toolchain.training.lean.mode import LeanMode

_BUSY = "_da3_forward"


@contextmanager
def replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a block run ``forward`` in place of its own inside the block of code."""
    # The instance may have a forward of its own already, set by another library.
    before = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before


@contextmanager
def batch_statistics(backbone: nn.Module, momentum: float | None) -> Iterator[None]:
    """Let BatchNorm layers use the batch's statistics inside the block of code.

    ``momentum``: by how much running statistics move to the batch's, whatever the layers say. A net
    that was trained for weeks may say 0.01, and would not follow a domain within a few hundred
    steps. None leaves the layers in evaluation. Raises AttachError for maps with one value per
    channel, which have no variance.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [] if momentum is None else [m for m in backbone.modules() if isinstance(m, kind)]
    own = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, momentum
    try:
        yield
    except ValueError as err:
        # torch has no class of its own for this error.
        if "more than 1 value per channel" not in str(err):
            raise
        raise AttachError(
            f"expected maps with several values per channel for a batch's statistics, got one: "
            f"{err}",
            fix="use a larger batch or larger pictures, or a method without them, such as bias",
        ) from err
    finally:
        for norm, before in zip(norms, own, strict=True):
            norm.training, norm.momentum = False, before


@contextmanager
def alone(backbone: nn.Module) -> Iterator[None]:
    """Raise AttachError for a second forward on one backbone while one runs: hooks would mix."""
    ticket = object()
    if vars(backbone).setdefault(_BUSY, ticket) is not ticket:  # atomic: one step for all threads
        raise AttachError(
            "expected one forward at a time on a backbone, got one inside or beside another",
            fix="give each thread a backbone of its own (copy.deepcopy), or run a bundle: Runner "
            "serves any number of threads",
        )
    try:
        yield
    finally:
        del vars(backbone)[_BUSY]


@contextmanager
def frozen(backbone: nn.Module, trained: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Let only ``trained`` require gradients, in evaluation mode, inside the block of code."""
    required = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval().requires_grad_(False)
    # After the whole backbone was frozen, as what is trained may be a part of it.
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, require in required.items():
            parameter.requires_grad_(require)
        for module, mode in modes.items():
            module.training = mode


def refuse_ungraded(block: nn.Module, _: object) -> None:
    """Refuse a block that runs without gradients while the forward around it has them.

    Reentrant checkpointing does so. It recomputes without the domain, which then would not learn.
    Raises AttachError.
    """
    if not torch.is_grad_enabled():
        raise AttachError(
            f"expected {type(block).__name__} to run with gradients, got one that the backbone "
            "runs without, as checkpointing of activations does",
            fix="switch checkpointing off in the backbone; attach with lean=True saves more",
        )


def refuse_shared(backbone: nn.Module, overrides: Mapping[str, object]) -> None:
    """Raise AttachError for an override of a tensor that two modules share, or that none holds."""
    # The same tensor object under two names is tied: a replacement under one would untie it.
    owners: dict[int, list[str]] = {}
    for prefix, module in backbone.named_modules():
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for leaf, tensor in tensors:
            owners.setdefault(id(tensor), []).append(f"{prefix}.{leaf}" if prefix else leaf)
    unshared = {names[0] for names in owners.values() if len(names) == 1}
    if wrong := sorted(set(overrides) - unshared):
        raise AttachError(
            "expected tensors that one module holds by themselves, got shared or computed ones: "
            f"{', '.join(wrong[:4])}",
            fix="give each module a tensor of its own, or use the method da3",
        )


def refuse_unmet(overrides: Overrides, backbone: nn.Module, mode: LeanMode) -> None:
    """Raise AttachError for partly trained kernels that no convolution ran with: none learns."""
    unmet = [
        name
        for name, override in overrides.items()
        if isinstance(override, SparseUpdate) and id(backbone.get_parameter(name)) not in mode.met
    ]
    if unmet:
        raise AttachError(
            f"expected kernels that a convolution takes as they are, got others: {unmet[0]}",
            fix="leave them out of the selection, or attach with lean=False",
        )


def refuse_compiled(backbone: nn.Module) -> None:
    """Raise AttachError for modules that no hook reaches into, and weights that are not plain."""
    for name, module in backbone.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise AttachError(
                f"{name or 'the backbone'!r}: expected a module of Python, got TorchScript, inside "
                "of which a domain cannot join",
                fix="build the net from its Python class and load the weights: "
                "net.load_state_dict(torch.jit.load(FILE).state_dict())",
            )
    for name, value in backbone.state_dict().items():
        plain = isinstance(value, Tensor) and not value.is_quantized
        if not plain or is_traceable_wrapper_subclass(value):
            raise AttachError(
                f"backbone tensor {name!r}: expected a plain float32 tensor, got a quantised or "
                "packed one",
                fix="attach to the net before it was quantised; da3-export --precision int8 "
                "quantises for a board",
            )


def refuse_weights(backbone: nn.Module) -> None:
    """Raise AttachError for tensors that no graph holds; a buffer may be infinite, as masks are."""
    weights = dict(backbone.named_parameters())
    for name, tensor in {**weights, **dict(backbone.named_buffers())}.items():
        if not tensor.is_floating_point() or nn.parameter.is_lazy(tensor):
            continue
        if tensor.is_meta:
            raise AttachError(
                f"backbone tensor {name!r}: expected values, got a tensor of the meta device, "
                "which has none",
                fix="load the weights: net.to_empty(device='cpu'), then net.load_state_dict(...)",
            )
        if tensor.dtype != torch.float32:
            raise AttachError(
                f"backbone tensor {name!r}: expected float32, got {tensor.dtype}",
                fix="attach to backbone.float()",
            )
        broken = ~tensor.isfinite() if name in weights else tensor.isnan()
        if bool(broken.any()):
            raise AttachError(
                f"backbone tensor {name!r}: expected finite values, got NaN or Inf",
                fix="load the backbone's weights again",
            )
