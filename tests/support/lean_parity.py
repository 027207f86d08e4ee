"""How a lean layer is held against its stock one: values, gradients, strides and kept bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolchain.training.lean import Lean, LeanMode

Function = Callable[..., Tensor]
EXACT = Lean()


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "shared":
        return x[:1].expand_as(x)
    return x.clone()


LAYOUTS = ["contiguous", "channels_last", "strided", "transposed", "shared"]


def answers(
    function: Function, tensors: Sequence[Tensor], layout: str, cotangent: Tensor | None = None
) -> tuple[Tensor, list[Tensor], list[tuple[int, ...]]]:
    """Return value, gradients of what requires grad, and the strides of the map's gradient."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    x = laid_out(leaves[0], layout)
    strides: list[tuple[int, ...]] = []
    if x.requires_grad:
        x.register_hook(lambda g: strides.append(_strides(g)))  # type: ignore[no-untyped-call]
    value = function(x, *leaves[1:])
    if cotangent is None:
        weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64)
        cotangent = torch.empty_like(value).copy_(weights.view(value.shape))
    variables = [t for t in leaves if t.requires_grad]
    gradients = torch.autograd.grad(value, variables, cotangent)
    return value.detach(), list(gradients), strides


def _strides(g: Tensor) -> tuple[int, ...]:
    """The strides that mean something: none of an empty map, none of a dimension of one."""
    sizes = zip(g.shape, g.stride(), strict=True)
    return tuple(stride for size, stride in sizes if size > 1 and g.numel())


def assert_parity(
    function: Function,
    *tensors: Tensor,
    lean: Lean = EXACT,
    layout: str = "contiguous",
    cotangent: Tensor | None = None,
    rtol: float = 1e-10,
) -> None:
    """Values bit for bit, gradients within ``rtol``, in stock's strides for the usual layouts."""
    value, gradients, strides = answers(function, tensors, layout, cotangent)
    with LeanMode(lean):
        lean_value, lean_gradients, lean_strides = answers(function, tensors, layout, cotangent)
    torch.testing.assert_close(lean_value, value, rtol=0, atol=0, equal_nan=True)
    assert _strides(lean_value) == _strides(value)
    for ours, stock in zip(lean_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, stock, rtol=rtol, atol=rtol, equal_nan=True)
    if layout in ("contiguous", "channels_last"):
        assert lean_strides == strides


def kept_bytes(forward: Callable[[], Tensor], *free: Tensor) -> int:
    """Bytes of the unique storages kept for the backward pass, those of ``free`` not counted."""
    shared = {t.untyped_storage().data_ptr() for t in free}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        alive.append(t)  # or another storage could take its address
        storage = t.untyped_storage()
        if storage.data_ptr() not in shared:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive.append(forward())
    return sum(sizes.values())


def lean_bytes(forward: Callable[[], Tensor], *free: Tensor, lean: Lean = EXACT) -> int:
    """:func:`kept_bytes` under the mode."""
    with LeanMode(lean):
        return kept_bytes(forward, *free)


def lean_gradcheck(function: Function, *tensors: Tensor, lean: Lean = EXACT) -> bool:
    """torch's numerical check in float64."""

    def run(*inputs: Tensor) -> Tensor:
        with LeanMode(lean):
            return function(*inputs)

    return torch.autograd.gradcheck(run, tensors)


def double(*shape: int, grad: bool = True) -> Tensor:
    """Random float64 of a shape."""
    return torch.randn(shape, dtype=torch.float64).requires_grad_(grad)
