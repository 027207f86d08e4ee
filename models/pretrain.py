"""Train the shipped ``resnet20`` on drawn pictures: ``python -m da3_models.pretrain --out FILE``.

One classifier answers three questions at once (figure, fill, background; see ``pictures``), each
with its own softmax over its own columns; that makes the features general. Training draws its
pictures as it goes and uses each once, so there is no data set to store. On one machine, one torch
and one thread count, the same seed gives the same file. This script is no part of the toolchain,
which trains adaptors only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.core.digest import sha256
from toolchain.core.files import write_atomic

from .pictures import IGNORED, TASKS, Pictures, draw
from .resnet20 import build

BATCH = 128
DRAWN_AT_ONCE = 2 * BATCH
MEAN = 0.5
STD = 0.5


def normalise(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Return float32 [N, 3, 32, 32] with mean and std 0.5 per channel, and int64 labels [N, 3]."""
    pixels = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.from_numpy(pictures.labels)


def batches(seed: int, pictures: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield freshly drawn batches, ``pictures`` pictures in all.

    Each is float32 ``[BATCH, 3, 32, 32]`` with int64 labels ``[BATCH, 3]``.
    """
    rng = np.random.default_rng(seed)
    for _ in range(pictures // DRAWN_AT_ONCE):
        images, labels = normalise(draw(rng, DRAWN_AT_ONCE))
        yield from ((images[half], labels[half]) for half in (slice(BATCH), slice(BATCH, None)))


def columns(logits: Tensor) -> Sequence[Tensor]:
    """Split logits [N, 64] into each task's columns."""
    return torch.tensor_split(logits, list(accumulate(TASKS.values()))[:-1], 1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the tasks' cross-entropies, of logits [N, 64] and labels [N, 3]."""
    parts = zip(columns(logits), labels.unbind(1), strict=True)
    losses = [F.cross_entropy(part, target, ignore_index=IGNORED) for part, target in parts]
    return torch.stack(losses).sum()


@torch.no_grad()
def accuracies(model: nn.Module, seed: int, pictures: int) -> dict[str, float]:
    """Return each task's share of right answers on pictures that training never drew."""
    model.eval()
    right, counted = np.zeros(len(TASKS)), np.zeros(len(TASKS))
    for images, labels in batches(seed, pictures):
        for task, part in enumerate(columns(model(images))):
            known = labels[:, task] != IGNORED
            right[task] += int((part.argmax(1) == labels[:, task])[known].sum())
            counted[task] += int(known.sum())
    return dict(zip(TASKS, (right / counted).round(4).tolist(), strict=True))


def train(model: nn.Module, *, seed: int, pictures: int, peak_lr: float, report_s: float) -> None:
    """Train in place: SGD with Nesterov momentum, one cycle up to ``peak_lr`` and down to zero."""
    # Biases and norms do not decay, as usual.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=peak_lr, momentum=0.9, nesterov=True)
    steps = pictures // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_lr, steps, pct_start=0.15)
    start = reported = time.monotonic()
    model.train()
    for step, (images, labels) in enumerate(batches(seed, pictures), 1):
        loss = loss_of(model(images), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        # OneCycleLR raises where it is asked for a step beyond its end.
        if step < steps:
            schedule.step()
        if time.monotonic() - reported > report_s:
            reported = time.monotonic()
            click.echo(f"{step}/{steps}  loss {loss.item():.3f}  {reported - start:.0f} s")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="the .safetensors file")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--pictures", type=int, default=76_800, show_default=True, help="drawn for training")
@click.option("--lr", type=float, default=0.1, show_default=True, help="peak of the cycle")
@click.option("--threads", type=int, default=1, show_default=True)
def main(out: Path, seed: int, pictures: int, lr: float, threads: int) -> None:
    """Train resnet20 on drawn pictures and write its weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = build(sum(TASKS.values()))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its types
    train(model, seed=seed, pictures=pictures, peak_lr=lr, report_s=15)
    click.echo(f"accuracy on pictures never drawn before: {accuracies(model, seed + 10**6, 8192)}")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(out, save(state), overwrite=True)
    click.echo(f"wrote {out}, {sha256(out.read_bytes())}")


if __name__ == "__main__":
    main()
