"""The domain's modules: additive adaptors, the dynamic gate, and how they join a block.

Rules of this file: plain ``nn.Module`` on maps, per sample. Only ``norm="batch"`` has statistics
across the batch. No backbone in sight. It does not find blocks and does not train. How rows skip
their block in training stands in ``rows``.

Semantics, per sample, everywhere in the project::

    out = (block(x) if gate(x) >= 0 else x) + upsample(adaptor(x))

The adaptor works on an average-pooled map and returns its correction at that coarse resolution. The
upsampling belongs to the join, where a linker can fold it into the addition.

The equations are a documented reconstruction. DA3 (Yang, Rakin, Fan, CVPR-W 2022) publishes that
the adaptor is additive and doubles as the gate; it does not publish its layers. The lite residual
follows TinyTL (Cai et al., NeurIPS 2020, section 3.2): pool, grouped convolution, norm, activation,
1x1 convolution that starts at zero, nearest upsampling. The gate is a step with a straight-through
gradient (Bengio, Leonard and Courville 2013, arXiv 1308.3432). That its logit is normalised while
it learns is ours.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.core.errors import AttachError
from toolchain.recipe import AdaptorOptions
from toolchain.training.adapt.blocks import Layout, Site

CELLS = 8
"""Without a ratio of its own, an adaptor's grid has at most so many cells a side."""
OPEN = 2.0
"""The logit of a fresh gate, which is open for every picture."""
LEARNING = 1.0
"""The bias of a gate that begins to learn: open for five pictures of six."""
MOMENTUM = 0.05
"""The norm's statistics are means over the last twenty batches or so."""
LEAST_SPREAD = 1e-3
BOUND = 2.5
"""A learning gate's bias stays within this distance of 0, from where gradients bring it back."""


def channels_first(x: Tensor, layout: Layout) -> Tensor:
    """View a block's map ``[N, H, W, C]``, ``[N, L, C]`` or ``[N, C, L]`` as ``[N, C, H, W]``."""
    if layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    if layout == "NLC":
        return x.permute(0, 2, 1).unsqueeze(2)
    if layout == "NCL":
        return x.unsqueeze(2)
    return x


def channels_back(x: Tensor, layout: Layout) -> Tensor:
    """View ``[N, C, H, W]`` in the block's own layout: undo :func:`channels_first`."""
    if layout == "NHWC":
        return x.permute(0, 2, 3, 1)
    if layout == "NLC":
        return x.squeeze(2).permute(0, 2, 1)
    if layout == "NCL":
        return x.squeeze(2)
    return x


class Pool(nn.Module):
    """Average pooling to the adaptor's coarse grid, chosen once from the block's shapes.

    The grid must divide the block's output map, so that nearest upsampling lands on whole cells. So
    the ratio is the largest common divisor of height and width that is not above ``ratio``. Without
    a ratio it is the least one that leaves at most ``CELLS`` a side: small maps then lose nothing,
    and what an adaptor keeps in training depends on its channels alone. Three cases pool the map to
    one cell: ratio 0, maps of rank 3 (tokens have no grid, and signals are treated alike), and an
    input that is no whole multiple of the output (odd maps under a stride).
    """

    def __init__(self, site: Site, ratio: int | None) -> None:
        super().__init__()
        (self.in_channels, *in_size), (self.out_channels, *out_size) = _sizes(site)
        self.up = self._ratio(out_size, ratio) if len(site.in_shape) == 3 else 0
        strides = [a // b for a, b in zip(in_size, out_size, strict=True)]
        whole = all(s * b == a for s, a, b in zip(strides, in_size, out_size, strict=True))
        # A block with a stride pools its larger input by that much more, to the same grid.
        self.window = tuple(self.up * s for s in strides) if self.up and whole else None
        if self.window is None:
            self.up = 0

    @staticmethod
    def _ratio(size: list[int], limit: int | None) -> int:
        common = gcd(*size)
        divisors = [d for d in range(1, common + 1) if common % d == 0]
        if limit is None:
            return next((d for d in divisors if max(size) <= CELLS * d), common)
        # A limit of 0 leaves no divisor; 0 then stands for one cell over the whole map.
        return max((d for d in divisors if d <= limit), default=0)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[N, C, H, W]`` to the coarse grid ``[N, C, h, w]``."""
        if self.window is None:
            return x.mean((2, 3), keepdim=True)
        return x if self.window == (1, 1) else F.avg_pool2d(x, self.window)


def _sizes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (channels, height, width) of a site's input and output."""

    def size(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(channels_first(torch.empty(1, *shape, device="meta"), site.layout).shape[1:])

    return size(site.in_shape), size(site.out_shape)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        if channels < 2:
            raise AttachError(
                "norm='group' needs a rank of at least 2: one value alone has no spread",
                fix="use norm='none' or a larger rank",
            )
        # At least two channels a group: on a 1x1 map a group of one would always be zero.
        return nn.GroupNorm(max(1, gcd(channels, 8) // 2), channels)
    return nn.Identity()


class Adaptor(nn.Module):
    """Lite residual on the pooled map: ``[N, C_in, h, w]`` to ``[N, C_out, h, w]``; zero at start.

    Options: ``rank`` (hidden width), ``kernel`` and ``groups`` of the first convolution, ``norm``.
    """

    def __init__(self, site: Site, pool: Pool, options: AdaptorOptions) -> None:
        super().__init__()
        rank = min(options.rank, pool.out_channels)
        groups = options.groups
        if pool.in_channels % groups or rank % groups:
            raise AttachError(
                f"block {site.name!r}: groups={groups} does not divide its {pool.in_channels} "
                f"channels and the adaptor's rank {rank}",
                fix=f"use groups={gcd(pool.in_channels, rank)} or a divisor of it",
            )
        self.reduce = nn.Conv2d(
            pool.in_channels, rank, options.kernel, padding=options.kernel // 2, groups=groups
        )
        self.norm = _norm(options.norm, rank)
        self.expand = nn.Conv2d(rank, pool.out_channels, 1)
        # A correction of zero: a fresh domain answers as the backbone does.
        nn.init.zeros_(self.expand.weight)
        if self.expand.bias is not None:
            nn.init.zeros_(self.expand.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map the pooled map ``[N, C, h, w]`` to the additive correction ``[N, C', h, w]``."""
        return self.expand(F.relu(self.norm(self.reduce(pooled))))  # type: ignore[no-any-return]


class AttentionAdaptor(Adaptor):
    """DA2's residual attention adaptor: the lite residual times a per-channel attention.

    The attention reads the pooled map's mean: ``softmax`` spreads a fixed sum over the channels,
    ``sigmoid`` and ``tanh`` weigh each by itself (DA2, arXiv 2012.01362v1; layers reconstructed).
    """

    def __init__(self, site: Site, pool: Pool, options: AdaptorOptions) -> None:
        super().__init__(site, pool, options)
        self.function = options.attention
        self.attend = nn.Conv2d(pool.in_channels, pool.out_channels, 1, groups=self._groups(pool))

    @staticmethod
    def _groups(pool: Pool) -> int:
        """Return as many groups as fit: a full matrix would outweigh the adaptor that it steers."""
        return gcd(pool.in_channels, pool.out_channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map the pooled map ``[N, C, h, w]`` to the attended correction ``[N, C', h, w]``."""
        scores: Tensor = self.attend(pooled.mean((2, 3), keepdim=True))
        if self.function == "softmax":
            # Times the channels, so that the mean weight is 1 and not 1 / C.
            weights = torch.softmax(scores, dim=1) * scores.shape[1]
        else:
            weights = torch.sigmoid(scores) if self.function == "sigmoid" else torch.tanh(scores)
        return super().forward(pooled) * weights


class Gate(nn.Module):
    """One logit per sample from the adaptor's pooled map ``[N, C, h, w]``; open from zero on.

    While it learns, its logit is normalised over the batch (as BatchNorm: Ioffe and Szegedy, ICML
    2015), and its bias is bounded. So a gate keeps apart the pictures of every batch: it cannot
    drift to where it is open, or closed, for all of them, and where no gradient brings it back.
    The norm exists only then: ``fold`` puts it into weight and bias.
    """

    # Buffers of the norm, which exist while the gate learns.
    mean: Tensor
    spread: Tensor
    batches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Zero weights: at the start every sample has the same logit, whatever its map.
        self.weight = nn.Parameter(torch.zeros(channels, 1))
        self.bias = nn.Parameter(torch.full((1,), OPEN))
        self.learns = False
        self._met: tuple[Tensor, Tensor] | None = None

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the logits ``[N, 1]``."""
        logits: Tensor = pooled.mean((2, 3)) @ self.weight
        if not self.learns:
            return logits + self.bias
        mean, spread = self.mean, self.spread
        if self.training:
            # With the least spread, also where a batch has one picture: the root has a slope there.
            mean, spread = logits.mean(), (logits.var(correction=0) + LEAST_SPREAD**2).sqrt()
            self._met = mean.detach(), spread.detach()
        return (logits - mean) / spread + self.bias

    def stepped(self) -> None:
        """End a step: the running statistics follow its batch, and the bias comes back to bounds.

        A bound that bends the bias in the forward pass would take its gradient away. A step that
        fails on its way changes nothing here.
        """
        if self._met is None:
            return
        with torch.no_grad():
            self.batches += 1
            share = torch.clamp(1 / self.batches, min=MOMENTUM)  # at first the mean over all
            for running, met in zip((self.mean, self.spread), self._met, strict=True):
                running.add_(share * (met - running))
            self.bias.clamp_(-BOUND, BOUND)
        self._met = None

    def learn(self, generator: torch.Generator) -> None:
        """Begin to learn: a drawn direction, and a norm that its logits go through."""
        with torch.no_grad():
            drawn = torch.randn(self.weight.shape, generator=generator)
            self.weight.copy_(drawn)
            self.bias.fill_(LEARNING)
        for name, value in (("mean", 0.0), ("spread", 1.0), ("batches", 0.0)):
            self.register_buffer(name, torch.full_like(self.bias.detach(), value))
        self.learns = True

    def fold(self) -> None:
        """End to learn: put the norm into weight and bias. The logits stay, but for rounding."""
        if not self.learns:
            return
        with torch.no_grad():
            self.bias.sub_(self.mean / self.spread)
            self.weight.div_(self.spread)
        del self.mean, self.spread, self.batches
        self.learns, self._met = False, None


def decide(logits: Tensor, forced: Tensor | None = None) -> Tensor:
    """Turn gate logits into hard 0/1 decisions ``[N, 1]``: 1 where >= 0, or what is ``forced``."""
    return (logits >= 0 if forced is None else forced).to(logits.dtype)


def straight_through(decisions: Tensor, logits: Tensor) -> Tensor:
    """Return ``decisions``, with the gradient of ``sigmoid(logits)``."""
    soft = torch.sigmoid(logits)
    return decisions + (soft - soft.detach())  # the bracket is exactly zero: they stay 0 or 1


def upsample(correction: Tensor, height: int, width: int) -> Tensor:
    """Repeat each coarse cell of ``[N, C, h, w]`` over its window: nearest, whole ratios only."""
    c, h, w = correction.shape[1:]
    if (h, w) == (height, width) or (h, w) == (1, 1):
        return correction  # broadcast does the rest
    cells = correction[:, :, :, None, :, None].expand(-1, c, h, height // h, w, width // w)
    return cells.reshape(-1, c, height, width)


class BlockDomain(nn.Module):
    """What a domain adds to one block: pooling, adaptor and, where the shape allows, a gate."""

    def __init__(
        self, site: Site, options: AdaptorOptions, *, attention: bool = False, gated: bool = False
    ) -> None:
        super().__init__()
        self.layout = site.layout
        self.pool = Pool(site, options.pool)
        kind = AttentionAdaptor if attention else Adaptor
        self.adaptor = kind(site, self.pool, options)
        self.gate = Gate(self.pool.in_channels) if gated and site.gateable else None

    def coarse(self, x: Tensor) -> Tensor:
        """Return a block's map on the adaptor's grid: ``[N, C, h, w]`` whatever the layout."""
        pooled: Tensor = self.pool(channels_first(x, self.layout))
        return pooled

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the correction ``[N, C, h, w]`` and the gate's logits ``[N, 1]`` or None."""
        pooled = self.coarse(x)
        return self.adaptor(pooled), None if self.gate is None else self.gate(pooled)

    def join(self, x: Tensor, y: Tensor, correction: Tensor, opened: Tensor | None) -> Tensor:
        """Combine a block's input, output, correction and decision into its adapted output.

        ``x``, ``y`` and the result: maps in the block's layout; ``correction``: ``[N, C, h, w]``;
        ``opened``: decisions ``[N, 1]``, None without a gate. This is the exported form. ``where``
        picks, so that a closed gate hides even an infinite block output. A decision has no gradient
        here; training joins rows instead (``rows``).
        """
        if opened is not None:
            y = torch.where(opened.reshape((-1,) + (1,) * (x.dim() - 1)) > 0, y, x)
        first = channels_first(y, self.layout)
        return channels_back(first + upsample(correction, *first.shape[2:]), self.layout)
