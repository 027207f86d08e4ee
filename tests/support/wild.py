"""Small nets built as real model zoos build theirs, where the toys are tidier than life.

Rules of this file: real modules, no mocks; each class says whose pattern it has. Weights are drawn
from a seed by :func:`built`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys

WIDTH, TOKENS = 8, 12  # of the token nets, for pictures of 12 x 16


class Mlp(nn.Module):
    """Two Linears with a residual: what follows the attention in every block here."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, 2 * width)
        self.shrink = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shrink(F.gelu(self.grow(self.norm(x))))
        return x + y


class Cosine(Mlp):
    """Swin V2: attention of normalised queries and keys; F.normalize expands by the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        y = (torch.softmax(scores * self.scale, dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return super().forward(x + y)


class Covariance(Mlp):
    """XCiT: attention between channels, and a depthwise convolution over tokens as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.local = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        x = x + (scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        y = self.local(x.transpose(1, 2).reshape(b, c, 3, n // 3)).reshape(b, c, n)
        return super().forward(x + y.transpose(1, 2))


class Positioned(Mlp):
    """EdgeNeXt: a position code that is computed from zeros of the batch's shape."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        mask = torch.zeros(b, 3, n // 3, dtype=torch.bool, device=x.device)
        rows = (~mask).cumsum(1, dtype=torch.float32)
        columns = (~mask).cumsum(2, dtype=torch.float32)
        code = torch.stack([(rows / 3).sin(), (columns * 3 / n).cos()], dim=-1)
        return super().forward(x + code.reshape(b, n, 2).repeat(1, 1, WIDTH // 2))


class Repeated(Mlp):
    """CaiT and Perceiver: a learned token that is repeated once for each picture of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.repeat(x.shape[0], 1, 1) + self.token.expand(x.shape[0], -1, -1)
        joined = torch.cat([token, x], dim=1)
        weights = torch.softmax(token @ joined.transpose(1, 2), dim=-1)
        return super().forward(x + weights @ joined)


class Standardised(toys.Residual):
    """Nets with instance statistics: ``std`` and ``var`` over each map, and padding by zeros."""

    def forward(self, x: Tensor) -> Tensor:
        centred = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)
        spread = x.var(1, keepdim=True, correction=0)
        none = x.new_zeros(x.shape[0], 1, x.shape[2], x.shape[3])
        padded = torch.cat([spread, none], dim=1).repeat(1, x.shape[1] // 2, 1, 1)
        return super().forward(centred + padded)


class Fused(Mlp):
    """timm's, torchvision's and transformers' attention: one fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return super().forward(x + y.transpose(1, 2).reshape(b, n, c))


class Multihead(Mlp):
    """torchvision's ViT: PyTorch's own layer, which turns batch and tokens about in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return super().forward(x + y)


class Windowed(Mlp):
    """Twins and Hiera: one fused operator on ``[N, windows, heads, length, width]``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.bias = nn.Parameter(torch.randn(2, TOKENS // 4, TOKENS // 4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        windows = self.qkv(x).reshape(b, 4, n // 4, 3, 2, c // 2)
        q, k, v = windows.permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return super().forward(x + y.transpose(2, 3).reshape(b, n, c))


class Single(Mlp):
    """One head: the fused operator on ``[N, length, width]``, its mask in a shape of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mask = (q @ k.transpose(1, 2)).relu()
        return super().forward(x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class Positions(nn.Module):
    """Twins: a convolution between blocks, whose result is written to in place and viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        image = x.transpose(1, 2).reshape(x.shape[0], WIDTH, 3, -1)
        y: Tensor = self.proj(image)
        y += image
        return y.flatten(2).transpose(1, 2)


class Tokens(nn.Module):
    """Patches as tokens, with a class token in front: ViT, DINOv2."""

    def __init__(self, blocks: Sequence[nn.Module], *, classed: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if classed else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 7)

    def tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is None:
            return tokens
        return torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.classified(tokens)

    def classified(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        return self.head(tokens.mean(1) if self.token is None else tokens[:, 0])  # type: ignore[no-any-return]


class Masked(Tokens):
    """transformers' ViT: one mask of the batch's shape that all layers read."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        b, n, _ = tokens.shape
        mask = torch.ones(b, n, dtype=torch.bool, device=x.device)
        mask = mask[:, None, None, :].expand(b, 1, n, n)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.classified(tokens)


class Placed(Mlp):
    """CoaT: every block of a stage has the one convolution that tells positions."""

    def __init__(self, place: nn.Conv1d) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.place(x.transpose(1, 2)).transpose(1, 2))


class Sharing(Tokens):
    """CoaT: a module that stands in the net and in each of its blocks."""

    def __init__(self) -> None:
        place = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        super().__init__([Placed(place), Placed(place)])
        self.place = place


class Told(Mlp):
    """PiT and CaiT: a block or a pool that takes the class token as an input of its own."""

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        return super().forward(x if token is None else x + token)


class Telling(Tokens):
    """CaiT: modules read a learned token as it is, a parameter without a picture in it."""

    def __init__(self) -> None:
        super().__init__([Told(), Told()], classed=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, self.token)
        return self.head(self.norm(tokens).mean(1))  # type: ignore[no-any-return]


class Features(Tokens):
    """EVA-02 without a classifier: the answer is as wide as the convolution that cuts patches."""

    def classified(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens).mean(1)  # type: ignore[no-any-return]


class Stemless(nn.Module):
    """FastViT, or any plain Sequential of blocks: the first one reads the picture."""

    def __init__(self, blocks: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """SegFormer's overlapping patches: tokens and the height of their map."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, 2 * stride - 1, stride, stride - 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        y = self.proj(x)
        return self.norm(y.flatten(2).transpose(1, 2)), y.shape[2]


class Hierarchy(nn.Module):
    """SegFormer: stages in a ModuleList, each turns a map into tokens and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Embedding(3, WIDTH, 2), Embedding(WIDTH, WIDTH, 2)])
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Sequential(Fused()), nn.Sequential(Fused())]) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        for stage, blocks in zip(self.stages, self.blocks, strict=True):
            tokens, height = stage(x)
            for block in blocks:  # type: ignore[attr-defined]
                tokens = block(tokens)
            x = tokens.transpose(1, 2).reshape(tokens.shape[0], WIDTH, height, -1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """transformers' Swin: blocks, then a smaller map; it returns the larger one beside it."""

    def __init__(self, width: int, outputs: int, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(toys.Residual(width, width) for _ in range(depth))
        last = width == outputs
        self.downsample = None if last else nn.Conv2d(width, outputs, 2, 2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        smaller = x if self.downsample is None else self.downsample(x)
        return self.norm(smaller), x


class Whole(nn.Module):
    """A stage that keeps its shape and does more than its blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(width, width), toys.Residual(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return x + y


class Staged(nn.Module):
    """Stages of blocks: a coarse view hides the blocks in them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(WIDTH)
        self.layers = nn.ModuleList([Stage(WIDTH, 12), Stage(12, 16), Stage(16, 16)])
        self.fc = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Unfolding(nn.Module):
    """transformers' MobileViT: its inner blocks see the pixels of a patch as further pictures."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, outputs, 2, 2)
        self.layer = nn.ModuleList([Fused(), Fused()])
        self.fuse = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        b, c, h, w = y.shape
        tokens = y.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1)
        tokens = tokens.reshape(4 * b, h * w // 4, c)
        for layer in self.layer:
            tokens = layer(tokens)
        y = tokens.reshape(b, 2, 2, h // 2, w // 2, c).permute(0, 5, 3, 1, 4, 2)
        return self.fuse(y.reshape(b, c, h, w))  # type: ignore[no-any-return]


class CrossStage(nn.Module):
    """timm's CspNet: half of the channels pass by the blocks and are joined behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.blocks = nn.Sequential(toys.Residual(width, width), toys.Residual(width, width))
        self.out = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        passing, worked = self.down(x).chunk(2, dim=1)
        joined = torch.cat([torch.relu(passing), self.blocks(worked)], dim=1)
        return self.out(joined)  # type: ignore[no-any-return]


class Scored(toys.Residual):
    """A block that returns its map and a value of each sample."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.mean((2, 3))


class DeeplySupervised(nn.Module):
    """Scores of each block are added to the features that the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(WIDTH)
        self.blocks = nn.ModuleList([Scored(WIDTH, WIDTH), Scored(WIDTH, WIDTH)])
        self.fuse = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x, first = self.blocks[0](self.stem(x))
        x, _ = self.blocks[1](x)
        return self.fc(self.fuse(x.mean((2, 3)) + first))  # type: ignore[no-any-return]


class Handing(toys.Residual):
    """A block that takes the scores of the one before, and hands its own on."""

    def forward(self, x: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        own = y.mean((2, 3), keepdim=True)
        return y * torch.sigmoid(own if scores is None else own + scores), own


class Passing(nn.Module):
    """RealFormer: attention scores go from block to block beside the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(WIDTH)
        self.blocks = nn.ModuleList([Handing(WIDTH, WIDTH) for _ in range(3)])
        self.last = nn.Sequential(toys.Residual(WIDTH, WIDTH))
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x, scores = self.stem(x), None
        for block in self.blocks:
            x, scores = block(x, scores)
        return self.fc(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


class Disordered(nn.Module):
    """A decoder beside its encoder: blocks run from the last to the first that was listed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([toys.Residual(WIDTH, WIDTH) for _ in range(3)])
        self.stem = toys.stem(WIDTH)
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in reversed(self.blocks):
            x = block(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Line(nn.Module):
    """A residual block on maps ``[N, C, L]``, as nets for signals have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.two = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(F.relu(self.norm(self.one(x))))
        return F.relu(x + y)


class Lines(nn.Module):
    """A picture read as a signal, its rows one after another; the last block listed runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([Line(WIDTH), Line(WIDTH)])
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2))
        for block in reversed(self.blocks):
            x = block(x)
        return self.fc(x.mean(2))  # type: ignore[no-any-return]


NETS: dict[str, Callable[[], nn.Module]] = {
    "vision_tokens": lambda: Tokens([Cosine(), Covariance(), Positioned(), Repeated()]),
    "torch_attention": lambda: Tokens([Multihead(), Positions(), Windowed(), Single()]),
    "coat": Sharing,
    "cait": Telling,
    "transformers_vit": lambda: Masked([Fused(), Fused()], classed=True),
    "stemless": lambda: Stemless(
        [toys.PreActivation(3), toys.Residual(3, 8, 2), Standardised(8, 8)], 8
    ),
    "segformer": Hierarchy,
    "swin_stages": Staged,
    "mobilevit": lambda: toys.Net(toys.stem(8), [toys.Residual(8, 8), Unfolding(8, 8)], 8),
    "cspnet": lambda: toys.Net(toys.stem(8), [CrossStage(8), CrossStage(8)], 8),
    "disordered": Disordered,
    "lines": Lines,
}
EXPORTED = ("vision_tokens", "torch_attention", "transformers_vit", "stemless", "cspnet", "lines")
"""Those whose graphs are special; capturing takes seconds each."""
SHAPE = (3, 12, 16)


def built(net: str | Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The net with weights and statistics drawn from ``seed``, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NETS[net]() if isinstance(net, str) else net()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
                toys.shake(norm)
    return module.eval()
