"""What a domain has of its own in place of the backbone's tensors.

Rules of this file: nothing here writes to the backbone. An *override* is a module that takes one
frozen tensor and returns the tensor that the forward uses in its place. It starts at the frozen
value, so a fresh domain answers as the backbone does. Residual adapters of convolutions are
overrides too: a 1x1 convolution beside or after a convolution is linear in the same input, so it
folds into the kernel exactly and costs nothing at run time. ``methods`` says which tensors a method
overrides. A bundle stores the tensors that differ as a patch (``bundle``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from toolchain.core.errors import AttachError
from toolchain.training.lean.conv import Slice

MASK_AT_START = 1e-2
MASK_THRESHOLD = 5e-3

Selection = Mapping[str, tuple[int, ...]]
"""The input channels that a sparse update learns, by the kernel's name."""


class Override(nn.Module):
    """A domain's own form of one tensor: ``forward`` maps the frozen value to it, same shape."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        # The count, not the tensor: a Parameter kept as an attribute would become a slot of the
        # domain.
        self.elements = base.numel()

    def forward(self, base: Tensor) -> Tensor:
        """Return the tensor of the shape of ``base`` that takes its place."""
        raise NotImplementedError

    def deployed_bytes(self) -> int:
        """Return what a bundle stores of it, in bytes: the whole tensor in float32.

        The number of trained parameters does not matter: export folds adapters and deltas into the
        frozen value and writes the sum.
        """
        return 4 * self.elements


class Replacement(Override):
    """The tensor itself, learned. A statistic is a buffer: it is moved, not learned."""

    value: Tensor

    def __init__(self, base: Tensor, *, learned: bool = True) -> None:
        super().__init__(base)
        value = base.detach().clone()
        if learned:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self, base: Tensor) -> Tensor:  # noqa: ARG002
        """Return the domain's own value."""
        return self.value


class _Step(torch.autograd.Function):
    """1 above the threshold, else 0. The gradient passes as if this were the identity."""

    @staticmethod
    def forward(ctx: object, scores: Tensor) -> Tensor:  # noqa: ARG004
        return (scores > MASK_THRESHOLD).to(scores.dtype)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0]


class BinaryMask(Override):
    """Piggyback: one real score per weight; the forward thresholds it to a binary mask.

    Scores start at 1e-2, the threshold is 5e-3, and the step's gradient is the identity (Mallya et
    al., ECCV 2018, section 3). A bundle stores one bit per weight.
    """

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.scores = nn.Parameter(torch.full_like(base, MASK_AT_START))

    def forward(self, base: Tensor) -> Tensor:
        """Return ``base`` with the masked weights at zero."""
        mask: Tensor = _Step.apply(self.scores)  # type: ignore[no-untyped-call]
        return base * mask

    def deployed_bytes(self) -> int:
        """Return one bit per weight, in whole bytes."""
        return -(-self.elements // 8)


class ParallelAdapter(Override):
    """Parallel residual adapter: ``conv(x, W) + conv1x1(x, A)``, folded into one kernel.

    ``A`` [O, I / groups] starts at zero and is added at the kernel's centre (Rebuffi et al., CVPR
    2018, section 3).
    """

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.adapter = nn.Parameter(torch.zeros_like(base[:, :, 0, 0]))

    def forward(self, base: Tensor) -> Tensor:
        """Return the kernel [O, I / groups, kH, kW] with the adapter at its centre."""
        above, left = (base.shape[2] - 1) // 2, (base.shape[3] - 1) // 2
        # torch pads the last dimension first.
        edges = (left, base.shape[3] - 1 - left, above, base.shape[2] - 1 - above)
        return base + nn.functional.pad(self.adapter[:, :, None, None], edges)


class SeriesAdapter(Override):
    """Series residual adapter: ``y + conv1x1(y, A)`` of ``y = conv(x, W)``, folded into one kernel.

    ``A`` [groups, O / groups, O / groups] starts at zero (Rebuffi et al., NeurIPS 2017, section 3).
    It stands before the norm, as in their CVPR 2018 form: there it is linear, so it can be folded.
    """

    def __init__(self, base: Tensor, groups: int) -> None:
        super().__init__(base)
        width = base.shape[0] // groups
        self.adapter = nn.Parameter(base.new_zeros(groups, width, width))

    def forward(self, base: Tensor) -> Tensor:
        """Return ``W + A W`` [O, I / groups, kH, kW], group by group."""
        rows = base.reshape(self.adapter.shape[0], self.adapter.shape[1], -1)
        return base + torch.bmm(self.adapter, rows).reshape(base.shape)

    def deployed_bytes(self) -> int:
        """Return the bytes of the kernel, or of one factor per channel after a depthwise one."""
        groups, width, _ = self.adapter.shape
        return 4 * groups if width == 1 else super().deployed_bytes()


class SparseUpdate(Override):
    """A kernel of which only some input channels are learned.

    ``index`` names the channels. ``delta`` [O, k, kH, kW], of a depthwise kernel [k, 1, kH, kW],
    starts at zero and is added on those channels (Lin et al., NeurIPS 2022, section 3.2).
    """

    index: Tensor

    def __init__(self, base: Tensor, channels: tuple[int, ...], *, depthwise: bool) -> None:
        super().__init__(base)
        self.axis = 0 if depthwise else 1
        count = base.shape[self.axis]
        if not channels or sorted(set(channels)) != list(channels) or not channels[-1] < count:
            raise AttachError(
                f"expected channels in rising order below {count}, got {list(channels)[:8]}",
                fix="take them from loop.contribution.search",
            )
        # The checkpoint's JSON holds the selection, so the index is no slot.
        self.register_buffer("index", torch.tensor(channels), persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(base.index_select(self.axis, self.index)))

    def forward(self, base: Tensor) -> Tensor:
        """Return the kernel with the learned channels' delta added."""
        return base.index_add(self.axis, self.index, self.delta)


class Overrides(nn.Module):
    """All overrides of one domain, in a module tree that mirrors the backbone's names.

    So a slot reads ``own.layer1.0.conv1.weight.scores``.
    """

    def __init__(self, overrides: Mapping[str, Override]) -> None:
        super().__init__()
        for name, override in overrides.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                # get_submodule would raise for a missing child, so look before.
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, override)
        self.names = tuple(overrides)

    def items(self) -> Iterator[tuple[str, Override]]:
        """Yield each override with the name of the backbone's tensor that it replaces."""
        for name in self.names:
            override = self.get_submodule(name)
            assert isinstance(override, Override)
            yield name, override

    def values(self, backbone: nn.Module, *, sparse: bool = True) -> dict[str, Tensor]:
        """Return the tensors that replace the backbone's, by name.

        ``sparse=False`` leaves out sparse updates: a lean convolution adds their deltas itself.
        """
        frozen = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
        return {
            name: override(frozen[name])
            for name, override in self.items()
            if sparse or not isinstance(override, SparseUpdate)
        }

    def slices(self, backbone: nn.Module) -> dict[int, Slice]:
        """Return the sparse updates for :class:`LeanMode`, by the ``id`` of the frozen kernel."""
        return {
            id(backbone.get_parameter(name)): Slice(override.delta, override.index)
            for name, override in self.items()
            if isinstance(override, SparseUpdate)
        }
