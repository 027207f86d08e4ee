"""What a recipe says: frozen dataclasses, each field with its rule.

Rules of this file: it is the only table of names, types, ranges and defaults; `yamlio` reads text,
`library` finds files, `scaffold` writes new ones. A recipe holds no code and inherits from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from toolchain.core.errors import Fault, UnknownNameError
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Scalar,
    Section,
    SectionOf,
    choice,
    key,
    number,
    printable,
    text,
    whole,
)
from toolchain.core.words import DIGEST, DOMAIN, IDENTIFIER
from toolchain.pictures.preprocess import Preprocessing

SAMPLE_LOADERS = ("cars", "digits", "chirps", "cells")
FOLDER_LOADERS = ("folder", "decathlon")
OPTIONAL = ("blocks", "head")
"""Keys of a recipe that are written only where they say something."""
METHODS = (
    "da3",
    "da2",
    "head",
    "finetune",
    "bn",
    "bias",
    "lite_residual",
    "series",
    "parallel",
    "piggyback",
    "sparse",
    "mobiletl",
)

# What a bundle's recipe has in place of the folder of the pictures.
LEFT_OUT = "PATH"
AUGMENTS = ("flip", "shift", "zoom", "rotate", "brightness")

# The rules are those of every manifest. The words and fixes are for people who write by hand.
DOMAIN_NAME = replace(
    DOMAIN,
    expected="a name of 1 to 64 letters, digits, '_', '-', '.' or spaces, "
    "starting with a letter or digit",
    fix="use a plain word such as flowers",
)
_IDENTIFIER = replace(IDENTIFIER, expected="a name of letters, digits, '_', '-' or '.'")
_MODULE = printable(500)
_HEAD = text(
    "a module's name of at most 500 characters, or '' where the backbone returns features",
    lambda value: len(value) <= 500 and value.isprintable(),
)
_DIGEST = replace(DIGEST, fix="write sha256: in front of what sha256sum FILE prints")


GOLDEN_PICTURES = 8
DRAWN = "drawn"
_COUNT = whole(1, 256)
_GOLDEN = Scalar(
    f"{_COUNT.expected}, or the word {DRAWN}",
    lambda value: value == DRAWN or _COUNT.accepts(value),
    fix=f"write golden: {DRAWN}, and no picture of the data goes into the bundle",
)


@dataclass(frozen=True, slots=True)
class DataSpec(Section):
    """Where the pictures come from.

    ``train`` and ``test`` are numbers of pictures. The drawn samples make exactly that many; for
    ``folder`` and ``decathlon`` they are upper limits, spread over the classes, null for all.
    """

    loader: str = key(choice(*SAMPLE_LOADERS, *FOLDER_LOADERS))
    root: str | None = key(Nullable(printable(1024)))
    train: int | None = key(Nullable(whole(1, 10_000_000)))
    test: int | None = key(Nullable(whole(1, 10_000_000)))
    seed: int = key(whole(0, 2**31 - 1))
    dataset: str | None = key(Nullable(_IDENTIFIER), default=None)

    def contradictions(self) -> Iterator[Fault]:
        """Yield what does not go with the loader."""
        if self.loader in SAMPLE_LOADERS:
            yield from self._sample_faults()
        elif self.root is None:
            fix = "name the folder that holds the pictures"
            yield Fault("root", f"expected a folder for the loader {self.loader}, got null", fix)
        if (self.dataset is not None) != (self.loader == "decathlon"):
            wants = "a data set's name" if self.loader == "decathlon" else "no such key"
            fix = "such as dataset: aircraft" if self.loader == "decathlon" else "remove it"
            yield Fault("dataset", f"expected {wants} for the loader {self.loader}", fix)

    def _sample_faults(self) -> Iterator[Fault]:
        if self.root is not None:
            message = f"expected null: the loader {self.loader} needs no folder"
            yield Fault("root", message, "set root: null or loader: folder")
        for name, count in (("train", self.train), ("test", self.test)):
            if count is None:
                message = f"expected a number of pictures for the loader {self.loader}, got null"
                yield Fault(name, message, "such as 1000")
            elif count > 100_000:
                message = f"expected at most 100000 pictures held in memory, got {count}"
                yield Fault(name, message, f"lower {name}")


@dataclass(frozen=True, slots=True)
class AdaptorOptions(Section):
    """What the method's paper leaves open, each with its default.

    ``placement`` all blocks or only those that can have a gate; ``pool`` the average-pool ratio
    before the adaptor (0: global); ``rank`` the hidden width in channels; ``kernel``, ``groups``
    of the first convolution; ``norm``, ``activation`` between the two convolutions;
    ``attention`` the function of da2's attention; ``gate`` the granularity of da3's gate;
    ``update_kib`` what sparse may keep of one sample for its weight gradients, in KiB; ``last``
    how many of the last blocks mobiletl trains.
    """

    placement: str = key(choice("gateable", "all"), default="gateable")
    pool: int = key(whole(0, 64), default=4)
    rank: int = key(whole(1, 4096), default=16)
    kernel: int = key(whole(1, 15, odd=True), default=1)
    groups: int = key(whole(1, 4096), default=1)
    norm: str = key(choice("none", "batch", "group"), default="none")
    activation: str = key(choice("relu"), default="relu")
    attention: str = key(choice("sigmoid", "tanh", "softmax"), default="sigmoid")
    gate: str = key(choice("block"), default="block")
    update_kib: int = key(whole(1, 1 << 30), default=64)
    last: int = key(whole(1, 2000), default=3)

    def contradictions(self) -> Iterator[Fault]:
        """Yield what the convolutions cannot be built with."""
        if self.rank % self.groups:
            message = f"expected a divisor of the rank of {self.rank}, got {self.groups}"
            yield Fault("groups", message, "set groups: 1")


_SHARED = ("placement", "pool", "rank", "kernel", "groups", "norm", "activation")
METHOD_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "da3": (*_SHARED, "gate"),
    "da2": (*_SHARED, "attention"),
    "head": (),
    "finetune": (),
    "bn": (),
    "bias": (),
    "lite_residual": _SHARED,
    "series": (),
    "parallel": (),
    "piggyback": (),
    "sparse": ("update_kib",),
    "mobiletl": ("last",),
}


@dataclass(frozen=True, slots=True)
class _ClassWeights:
    """A rule for a word, or for one number per class; no weight is negative or zero."""

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the word or a tuple, or None with a fault."""
        if isinstance(value, list | tuple):
            return ListOf(number(0, 1e6, above=True), 2, 100_000).read(path, value, faults)
        return choice("none", "balanced").read(path, value, faults)


@dataclass(frozen=True, slots=True)
class TrainSpec(Section):
    """How a domain is trained.

    ``budget`` is the share of the backbone's FLOPs that an average picture may execute, and
    ``budget_weight`` the factor of its loss; only da3 uses them. ``augment`` names what happens to
    training pictures (``training.loop.augment``). ``keep`` is the precision in which the inputs of
    trained layers wait for the backward pass; ``lr`` is that of da3, other methods scale it by a
    factor of their own. ``validation`` is the share of the training pictures that chooses the epoch
    (null: a tenth where that is enough); ``patience`` after how many epochs without a better one
    training stops. ``class_weights`` weigh the loss: balanced, or one number for each class in the
    order of the names.
    """

    epochs: int = key(whole(1, 10_000))
    batch: int = key(whole(1, 65_536))
    lr: float = key(number(0, 10, above=True))
    weight_decay: float = key(number(0, 1))
    seed: int = key(whole(0, 2**31 - 1))
    budget: float = key(number(0, 1, above=True))
    budget_weight: float = key(number(0, 1000))
    augment: tuple[str, ...] = key(ListOf(choice(*AUGMENTS), 0, len(AUGMENTS)))
    keep: str = key(choice("fp32", "half", "int8"), default="int8")
    validation: float | None = key(Nullable(number(0, 0.5)), default=None)
    patience: int | None = key(Nullable(whole(1, 10_000)), default=None)
    class_weights: str | tuple[float, ...] = key(_ClassWeights(), default="none")

    def contradictions(self) -> Iterator[Fault]:
        """Yield an augmentation that stands twice, and patience without anything to judge by."""
        if len(set(self.augment)) < len(self.augment):
            yield Fault("augment", f"expected each name once, got {list(self.augment)}")
        if self.patience is not None and self.validation == 0:
            message = "expected null without a validation part"
            yield Fault("patience", message, "set validation to a share such as 0.1, or null")


@dataclass(frozen=True, slots=True)
class Recipe(Section):
    """One domain: its data, preprocessing, method and training.

    ``golden``: how many pictures of the test data the bundle carries at most, ``drawn`` for drawn
    ones in their place, None for the loader's default. ``blocks`` and ``head`` name modules of the
    backbone where neither its structure nor its package tells them; an empty ``head`` says that it
    returns features. ``folder`` is where the file lay, None for text; a relative ``weights`` is
    looked for there.
    """

    domain: str = key(DOMAIN_NAME)
    title: str = key(printable(200))
    licence: str = key(printable(200))
    backbone: str = key(_IDENTIFIER)
    weights: str | None = key(Nullable(printable(1024)))
    weights_sha256: str | None = key(Nullable(_DIGEST))
    data: DataSpec = key(SectionOf(DataSpec))
    preprocess: Preprocessing = key(SectionOf(Preprocessing))
    method: str = key(choice(*METHODS))
    adaptor: AdaptorOptions = key(SectionOf(AdaptorOptions))
    train: TrainSpec = key(SectionOf(TrainSpec))
    golden: int | str | None = key(_GOLDEN, default=None)
    blocks: tuple[str, ...] | None = key(Nullable(ListOf(_MODULE, 1, 2000)), default=None)
    head: str | None = key(Nullable(_HEAD), default=None)
    folder: Path | None = field(default=None, compare=False)

    def contradictions(self) -> Iterator[Fault]:
        """Yield weights without digest or digest without weights."""
        if self.weights is not None and self.weights_sha256 is None:
            message = "expected the digest of the weights file, got null"
            yield Fault(
                "weights_sha256",
                message,
                f"write sha256: in front of what sha256sum {self.weights} prints",
            )
        if self.weights is None and self.weights_sha256 is not None:
            message = "expected null: there is no weights file"
            yield Fault("weights_sha256", message, "name the file in weights")

    def by(self, method: str) -> Recipe:
        """Return the recipe with another method; adaptor options that it lacks become defaults.

        Raises UnknownNameError.
        """
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
        used = METHOD_OPTIONS[method]
        options = {name: getattr(self.adaptor, name) for name in used}
        return replace(self, method=method, adaptor=AdaptorOptions(**options))

    @property
    def golden_drawn(self) -> bool:
        """Whether golden pictures are drawn; so they are by default where a folder is read."""
        if self.golden is None:
            return self.data.loader in FOLDER_LOADERS
        return self.golden == DRAWN

    @property
    def golden_pictures(self) -> int:
        """How many golden pictures a bundle has, at most."""
        return self.golden if isinstance(self.golden, int) else GOLDEN_PICTURES

    def without_paths(self) -> Recipe:
        """Return the recipe as a bundle carries it: it says nothing of the machine's folders.

        ``data.root`` becomes :data:`LEFT_OUT`. ``weights`` becomes the file's name; its digest says
        which file it is.
        """
        root = None if self.data.root is None else LEFT_OUT
        weights = None if self.weights is None else PurePath(self.weights).name
        return replace(self, data=replace(self.data, root=root), weights=weights, folder=None)

    @property
    def weights_path(self) -> Path | None:
        """The weights file, relative to the recipe's folder; None for those of the backbone."""
        if self.weights is None:
            return None
        return (self.folder or Path()) / self.weights


def unused_options(method: object, options: object) -> Iterator[Fault]:
    """Yield the adaptor options in ``options`` that exist but that ``method`` does not use."""
    if not isinstance(method, str) or method not in METHOD_OPTIONS or not isinstance(options, dict):
        return
    every = {name for names in METHOD_OPTIONS.values() for name in names}
    for name in options:
        if name in every and name not in METHOD_OPTIONS[method]:
            yield Fault(f"adaptor.{name}", f"the method {method} has no such option", "remove it")
