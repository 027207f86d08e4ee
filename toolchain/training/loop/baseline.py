"""The head-only baseline: what the frozen features alone are good for, and where training starts.

Rules of this file: nothing before the head changes, so every picture runs through the backbone
once, without augmentation, and the head is fitted to the stored features. They lie in a file
without a name and are read in chunks, so that no number of pictures needs more memory than the
training was said to take (``memory.head``). Methods that change the backbone's own tensors start
from this head (linear probing before fine-tuning: Kumar et al., ICLR 2022). The additive ones start
from zero (``methods.Method.fitted_head``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.core.errors import StorageError
from toolchain.core.files import room_fix
from toolchain.pictures.preprocess import Preprocessing
from toolchain.training.adapt.attached import HEAD, MOMENTUM, AttachedModel
from toolchain.training.adapt.loss import class_loss
from toolchain.training.data.splits import DomainData, Split
from toolchain.training.loop.devices import device_of
from toolchain.training.loop.evaluation import BATCH, as_tensors, batches
from toolchain.training.loop.progress import Tick, unheard
from toolchain.training.memory.head import ROOM, HeadFit, head_fit

STEPS = 200
DECAY = 1e-3
SETTLING = 100
"""Batches that statistics are taken from: of 32 pictures each, their error is below one percent."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The head to start from, and the head-only baseline's test accuracy.

    ``weight`` [classes, features], ``bias`` [classes].
    """

    weight: Tensor
    bias: Tensor
    accuracy: float


def probe(
    model: AttachedModel,
    data: DomainData,
    preprocess: Preprocessing,
    *,
    batch: int = BATCH,
    room: int = ROOM,
    folder: Path | None = None,
    class_weights: Tensor | None = None,
    tick: Tick = unheard,
) -> Probe:
    """Fit a linear head to the features of ``data.train``, and test it on the plain backbone.

    Multinomial logistic regression with a small decay, which has one optimum and so needs no seed.
    The features are the plain backbone's. For a method that trains with the batch's statistics, the
    accuracy is still that of the plain backbone; the head is one for the domain's own statistics,
    which start as those of its pictures (``settle``). Nothing else of the domain is used or
    changed. Pictures run in batches of ``batch``, and the fit takes at most ``room`` bytes, if that
    is possible. ``folder``: where the file of features may lie, which has no name.
    ``class_weights``: float [classes], by which each picture counts. ``tick`` hears how many
    pictures are done. Raises StorageError where there is no space for that file.
    """
    plain = AttachedModel(model.backbone, model.anatomy, HEAD, model.classes, model.options)
    again = len(data.train) if model.batch_statistics else 0
    count = len(data.train) + len(data.test) + again
    sizes = head_fit(model.anatomy.features, model.classes, room)

    def fitted(source: AttachedModel, heard: Tick) -> tuple[Tensor, Tensor]:
        stored = _stored(_features(source, data.train, preprocess, batch, heard), sizes, folder)
        with stored as train:
            mean, spread = train.standardised()
            weights = None if class_weights is None else class_weights.cpu()
            head = _fit(train, model.classes, sizes, weights, lambda: heard(len(train), count))
        with torch.no_grad():
            # The head was fitted to scaled features. Fold the scaling in: it takes plain ones.
            weight = head.weight / spread
            return weight, head.bias - weight @ mean

    weight, bias = fitted(plain, _from(0, count, tick))
    tests = _from(len(data.train), count, tick)
    right = sum(
        int(((features @ weight.T + bias).argmax(1) == labels).sum())
        for features, labels in _features(plain, data.test, preprocess, batch, tests)
    )
    if again:
        # Its features are others from the first step on, and with them its head.
        done = len(data.train) + len(data.test)
        settle(model, data.train, preprocess, batch=batch, tick=lambda *_: tick(done, count))
        weight, bias = fitted(model, _from(done, count, tick))
    return Probe(weight, bias, right / len(data.test))


@torch.no_grad()
def settle(
    model: AttachedModel,
    split: Split,
    preprocess: Preprocessing,
    *,
    batch: int,
    tick: Tick = unheard,
) -> None:
    """Let the domain's running statistics be the mean over batches of ``split``, in any order.

    Of a method that trains with the batch's statistics, the backbone's are those of other pictures
    (Li et al., AdaBN, 2016). A head that was fitted with them meets other features in the first
    step, and its loss is then many times that of a random one.
    """
    order = np.random.default_rng(0).permutation(len(split))
    count = min(SETTLING, max(1, len(split) // batch))
    model.train()
    try:
        for number in range(count):
            rows = order[number * batch : (number + 1) * batch]
            # So the mean over all batches stays, each counting the same.
            model.momentum = 1 / (number + 1)
            model(as_tensors(preprocess, *split.batch(rows), device_of(model))[0])
            tick(number + 1, count)
    finally:
        model.momentum = MOMENTUM
        model.train(False)


def _from(before: int, count: int, tick: Tick) -> Tick:
    """Return a tick for a part of ``count`` pictures, that has ``before`` others before it."""
    return lambda done, _: tick(before + done, count)


def _features(
    model: AttachedModel, split: Split, preprocess: Preprocessing, batch: int, tick: Tick
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a model's features by batches, float32 [B, features] on the CPU, with labels."""
    place = device_of(model)
    for images, labels in batches(split, preprocess, batch=batch, device=place, tick=tick):
        with torch.no_grad():
            features = model.trace(images, maps=False).features
        del images  # before the next ones are made: one batch is what was told
        assert features is not None
        yield features.cpu(), labels.cpu()


class _Stored:
    """Features of a split, float32 [N, features], that are read in chunks of whole rows."""

    def __init__(self, file: IO[bytes], labels: Tensor, rows: int) -> None:
        self._file, self._labels, self._rows = file, labels, rows
        self.width = file.tell() // (4 * len(labels))
        self._mean, self._spread = torch.zeros(1), torch.ones(1)
        # One chunk for all of them, read once if there are no more.
        self._buffer = torch.empty(min(rows, len(labels)), self.width)
        self._whole = rows >= len(labels)
        if self._whole:
            self._read(self._buffer, 0)

    def __len__(self) -> int:
        return len(self._labels)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and labels, one chunk at a time: the next one takes its place."""
        if self._whole:
            yield self._buffer, self._labels
            return
        for start in range(0, len(self), self._rows):
            labels = self._labels[start : start + self._rows]
            features = self._buffer[: len(labels)]
            self._read(features, start)
            yield features.sub_(self._mean).div_(self._spread), labels

    def standardised(self) -> tuple[Tensor, Tensor]:
        """Scale every feature to mean 0 and spread 1, and return both as they were, [features]."""
        mean, spread = self._moments()
        # A feature that never changes has no spread to divide by.
        self._mean, self._spread = mean, spread.clamp_min(1e-3)
        if self._whole:
            self._buffer.sub_(self._mean).div_(self._spread)
        return self._mean, self._spread

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return every feature's mean and its spread over all pictures, [features]."""
        if self._whole:
            return self._buffer.mean(0), self._buffer.std(0)
        count, mean, square = 0, torch.zeros(self.width), torch.zeros(self.width)
        for features, labels in self.chunks():
            # Chan, Golub and LeVeque 1983: means and squares of parts become those of all.
            more, its_mean = len(labels), features.mean(0)
            apart = its_mean - mean
            square += (features - its_mean).square_().sum(0)
            square += apart.square() * (count * more / (count + more))
            mean += apart * (more / (count + more))
            count += more
        return mean, (square / (count - 1)).sqrt()

    def _read(self, features: Tensor, start: int) -> None:
        self._file.seek(4 * self.width * start)
        part = features.numpy().reshape(-1)
        part[:] = np.frombuffer(self._file.read(part.nbytes), np.float32)


@contextmanager
def _stored(
    batches: Iterator[tuple[Tensor, Tensor]], sizes: HeadFit, folder: Path | None
) -> Iterator[_Stored]:
    """Store the features that ``batches`` yield, and yield them all."""
    all_labels: list[Tensor] = []
    with TemporaryFile(dir=folder, prefix="da3-features-") as file:
        for features, labels in batches:
            data = features.contiguous().numpy().data
            try:
                file.write(data)
            except OSError as err:
                raise StorageError(
                    f"cannot keep the features of the pictures: {err.strerror}, after "
                    f"{sum(map(len, all_labels))} of them, {data.nbytes // len(labels)} bytes each",
                    fix=room_fix(err, "free some space where the checkpoint goes"),
                ) from err
            all_labels.append(labels)
        yield _Stored(file, torch.cat(all_labels), sizes.rows)


def _fit(
    features: _Stored,
    classes: int,
    sizes: HeadFit,
    class_weights: Tensor | None,
    tick: Callable[[], None],
) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # its random start is overwritten below
        head = nn.Linear(features.width, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    # Convex and small: all features at once, and the line search needs no learning rate.
    optimiser = torch.optim.LBFGS(
        head.parameters(),
        max_iter=STEPS,
        history_size=sizes.pairs,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        tick()
        optimiser.zero_grad()
        loss = DECAY * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        for part, labels in features.chunks():
            share = class_loss(head(part), labels, class_weights) * (len(labels) / len(features))
            share.backward()  # type: ignore[no-untyped-call]
            loss = loss + share.detach()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return head
