"""What a recipe says: frozen dataclasses, each field with its rule.

Rules of this file: it is the only table of names, types, ranges and defaults; `yamlio` reads text,
`library` finds files, `scaffold` writes new ones. A recipe holds no code and inherits from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
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
from toolchain.core.files import stays_below
from toolchain.core.words import DIGEST, DOMAIN, IDENTIFIER
from toolchain.pictures.preprocess import Preprocessing

SAMPLE_LOADERS = ("cars", "digits", "chirps", "cells")
FOLDER_LOADERS = ("folder", "decathlon", "csv")
"""Loaders of pictures that are files."""
ARRAY_LOADERS = ("idx", "npz")
"""Loaders of pictures that stand together in one array."""
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
MAX_BUDGET_WEIGHT = 1000


DATA_OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(SAMPLE_LOADERS, ()),
    "folder": (),
    "decathlon": ("dataset",),
    "csv": (
        *("files", "sha256", "columns", "delimiter", "path"),
        *("labels", "classes", "test_share"),
    ),
    "idx": ("files", "sha256", "labels", "classes", "test_share"),
    "npz": ("files", "sha256", "columns", "white", "labels", "classes", "test_share"),
}
"""The keys of ``data`` that only some loaders have, by loader."""
_NEEDED = {
    "decathlon": ("dataset",),
    "csv": ("files", "columns"),
    "idx": ("files",),
    "npz": ("files", "columns"),
}
_SUCH_AS = {"dataset": "aircraft", "files": "[labels.csv]", "columns": "[file, label]"}
# How many entries a loader's list may have, and what they are.
_COUNTS: Mapping[tuple[str, str], tuple[tuple[int, ...], str]] = {
    ("csv", "files"): ((1, 2, 3), "one table, or one each to train, to test and to validate"),
    ("csv", "columns"): ((2, 3), "the columns of the paths, of the labels, and of the parts"),
    ("idx", "files"): ((2, 4, 6), "pictures and labels to train, to test and to validate"),
    ("npz", "files"): ((1,), "one archive"),
    ("npz", "columns"): ((2, 4, 6), "pictures and labels to train, to test and to validate"),
}
TEST_SHARE = 0.2
"""Of each class, where the data have no part to test with and the recipe states no share."""
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
PLACE = "{}"
"""Stands in ``data.path`` for what a row says."""

_FILE_NAME = text(
    "the path of a file below data.root, without '..' and with '/' between its parts",
    lambda value: printable(500).accepts(value) and stays_below(value),
)
_PATTERN = text(
    f"a path below data.root in which {PLACE} stands once for what a row says",
    lambda value: _FILE_NAME.accepts(value) and value.count(PLACE) == 1,
    fix=f"such as images/{PLACE}.png",
)
_COLUMN = Scalar(
    "a column's name, or its number from 1 on where the table has no line of names",
    lambda value: printable(200).accepts(value) or whole(1, 10_000).accepts(value),
)
_LABEL = Scalar(
    "text of 1 to 200 printable characters, or a whole number",
    lambda value: printable(200).accepts(value) or type(value) is int,
    convert=str,
    fix='write other numbers in quotes: "0.5"',
)

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
    the others they are upper limits, spread over the classes, null for all.

    The keys from ``dataset`` on are None where the loader has none of that name
    (:data:`DATA_OPTIONS`). ``files`` lie below ``root``, and ``sha256`` are their digests.
    ``columns`` are those of a table, or the names of arrays: of the paths or pictures, then of the
    labels, then what names the parts. ``path`` says where the picture of a row is. A label
    ``labels[i]`` of the data is the class ``classes[i]``. ``white`` is the value of white in
    pictures that are not uint8. ``test_share`` of each class tests where the data have no part for
    it.
    """

    loader: str = key(choice(*DATA_OPTIONS))
    root: str | None = key(Nullable(printable(1024)))
    train: int | None = key(Nullable(whole(1, 10_000_000)))
    test: int | None = key(Nullable(whole(1, 10_000_000)))
    seed: int = key(whole(0, 2**31 - 1))
    dataset: str | None = key(Nullable(_IDENTIFIER), default=None)
    files: tuple[str, ...] | None = key(Nullable(ListOf(_FILE_NAME, 1, 6)), default=None)
    sha256: tuple[str, ...] | None = key(Nullable(ListOf(_DIGEST, 1, 6)), default=None)
    columns: tuple[str | int, ...] | None = key(Nullable(ListOf(_COLUMN, 2, 6)), default=None)
    delimiter: str | None = key(Nullable(choice(*DELIMITERS)), default=None)
    path: str | None = key(Nullable(_PATTERN), default=None)
    labels: tuple[str, ...] | None = key(Nullable(ListOf(_LABEL, 2, 4000)), default=None)
    classes: tuple[str, ...] | None = key(Nullable(ListOf(_LABEL, 2, 4000)), default=None)
    white: float | None = key(Nullable(number(0, 1e9, above=True)), default=None)
    test_share: float | None = key(Nullable(number(0, 0.9, above=True)), default=None)

    def contradictions(self) -> Iterator[Fault]:
        """Yield what does not go with the loader."""
        if self.loader in SAMPLE_LOADERS:
            yield from self._sample_faults()
        elif self.root is None:
            fix = "name the folder that holds the pictures"
            yield Fault("root", f"expected a folder for the loader {self.loader}, got null", fix)
        yield from self._stray()
        yield from self._lengths()

    @property
    def has_test(self) -> bool:
        """Whether files or columns name a part to test with."""
        if self.loader == "csv":
            return len(self.files or ()) > 1 or len(self.columns or ()) > 2
        return len((self.columns if self.loader == "npz" else self.files) or ()) > 2

    def _stray(self) -> Iterator[Fault]:
        known = DATA_OPTIONS[self.loader]
        for name in sorted({name for names in DATA_OPTIONS.values() for name in names}):
            value = getattr(self, name)
            if value is not None and name not in known:
                message = f"expected no such key for the loader {self.loader}"
                yield Fault(name, message, "remove it")
            elif value is None and name in _NEEDED.get(self.loader, ()):
                message = f"expected this key for the loader {self.loader}"
                yield Fault(name, message, f"such as {name}: {_SUCH_AS[name]}")

    def _lengths(self) -> Iterator[Fault]:
        """Yield lists that do not fit the loader, or each other."""
        for (loader, name), (counts, what) in _COUNTS.items():
            value = getattr(self, name)
            if loader == self.loader and value is not None and len(value) not in counts:
                listed = " or ".join(map(str, counts))
                yield Fault(name, f"expected {listed} entries ({what}), got {len(value)}")
        columns = self.columns or ()
        kinds = {type(column) for column in columns}
        if len(kinds) > 1 or (self.loader == "npz" and int in kinds):
            numbers = "" if self.loader == "npz" else ", or numbers only"
            yield Fault("columns", f"expected names only{numbers}, got {list(columns)}")
        if self.loader == "csv" and len(columns) > 2 and len(self.files or ()) > 1:
            message = "expected 2 columns, as each table is a part"
            yield Fault("columns", message, "remove the column of the parts")
        yield from self._names()

    def _names(self) -> Iterator[Fault]:
        """Yield lists that do not fit each other, and shares and names that say nothing."""
        for name, other in (("sha256", "files"), ("classes", "labels")):
            own, its = getattr(self, name), getattr(self, other)
            if own is not None and its is not None and len(own) != len(its):
                message = f"expected as many entries as {other} has, {len(its)}, got {len(own)}"
                yield Fault(name, message)
        for name in ("columns", "labels"):
            value = getattr(self, name) or ()
            if len(set(value)) < len(value):
                yield Fault(name, "expected each entry once")
        if self.classes is not None and len(set(self.classes)) < 2:
            yield Fault("classes", "expected at least 2 different names, got 1")
        if self.loader == "csv" and self.classes is not None and self.labels is None:
            message = "expected the key labels beside it: what the table says for each class"
            yield Fault("classes", message, "write labels with as many entries")
        if self.test_share is not None and self.has_test:
            yield Fault("test_share", "expected null: the data have a part to test with")

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
    before the adaptor (0: global, null: the least that leaves at most 8 cells a side); ``rank`` the
    hidden width in channels; ``kernel``, ``groups`` of the first convolution; ``norm``,
    ``activation`` between the two convolutions; ``attention`` the function of da2's attention;
    ``gate`` the granularity of da3's gate; ``update_kib`` what sparse may keep of one sample for
    its weight gradients, in KiB; ``last`` how many of the last blocks mobiletl trains.
    """

    placement: str = key(choice("gateable", "all"), default="all")
    pool: int | None = key(Nullable(whole(0, 64)), default=None)
    rank: int = key(whole(1, 4096), default=32)
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
    budget_weight: float = key(number(0, MAX_BUDGET_WEIGHT))
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
            return self.data.loader not in SAMPLE_LOADERS
        return self.golden == DRAWN

    @property
    def golden_pictures(self) -> int:
        """How many golden pictures a bundle has, at most."""
        return self.golden if isinstance(self.golden, int) else GOLDEN_PICTURES

    def without_paths(self) -> Recipe:
        """Return the recipe as a bundle carries it: it says nothing of the machine's folders.

        ``data.root`` becomes :data:`LEFT_OUT`. Of ``weights``, ``data.files`` and ``data.path`` the
        last part stays: the file's name. Its digest says which file it is.
        """
        data = replace(
            self.data,
            root=None if self.data.root is None else LEFT_OUT,
            files=self.data.files and tuple(map(_last, self.data.files)),
            path=self.data.path and _last(self.data.path),
        )
        weights = None if self.weights is None else _last(self.weights)
        return replace(self, data=data, weights=weights, folder=None)

    @property
    def weights_path(self) -> Path | None:
        """The weights file, relative to the recipe's folder; None for those of the backbone."""
        if self.weights is None:
            return None
        return (self.folder or Path()) / self.weights


def _last(path: str) -> str:
    return PurePath(path).name


def data_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``data`` as plain values, without what it leaves open.

    ``dataset`` stays: recipes have the digest that they had before there were other such keys.
    """
    optional = {f.name for f in fields(DataSpec) if f.default is None} - {"dataset"}
    return {k: v for k, v in document.items() if v is not None or k not in optional}


def unused_options(method: object, options: object) -> Iterator[Fault]:
    """Yield the adaptor options in ``options`` that exist but that ``method`` does not use."""
    if not isinstance(method, str) or method not in METHOD_OPTIONS or not isinstance(options, dict):
        return
    every = {name for names in METHOD_OPTIONS.values() for name in names}
    for name in options:
        if name in every and name not in METHOD_OPTIONS[method]:
            yield Fault(f"adaptor.{name}", f"the method {method} has no such option", "remove it")
