"""The Visual Decathlon's data sets: COCO-style annotations, one label per picture.

Rules of this file: it reads the challenge's own layout (Rebuffi, Bilen, Vedaldi, NIPS 2017, and its
development kit). The ``val`` part serves as our test, because the labels of the test part are not
public. It treats annotation files as hostile: size and count are limited, every field is checked,
no path may leave the root. It knows both layouts::

    ROOT/annotations/<dataset>_train.json         ROOT/<dataset>/annotations/<dataset>_train.json
    ROOT/annotations/<dataset>_val.json           ROOT/<dataset>/annotations/<dataset>_val.json
    ROOT/data/<dataset>/...                       ROOT/<dataset>/train/..., val/...

A picture's ``file_name`` is relative to ROOT in the first and to ROOT/<dataset> in the second.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from toolchain.core.errors import DataError
from toolchain.core.fields import show
from toolchain.core.files import is_file, read_limited, resolved, stays_below
from toolchain.pictures.decode import SUFFIXES
from toolchain.recipe.listing import Listing, Pairs
from toolchain.recipe.spec import DataSpec
from toolchain.training.data.splits import require_pictures

MAX_BYTES = 512 * 1024 * 1024
MAX_IMAGES = 5_000_000
MAX_CATEGORIES = 20_000
# An annotation file nests three deep (a box in an annotation in the list); json would recurse.
MAX_DEPTH = 16
_INT_DIGITS = 18
PARTS = ("train", "val")

LAYOUT = """expected layout:
    {root}/
    ├── annotations/
    │   ├── {dataset}_train.json   images[], annotations[], categories[]
    │   └── {dataset}_val.json
    └── data/
        └── {dataset}/             the pictures that file_name names"""


def listed(spec: DataSpec, root: Path, domain: str) -> Listing:
    """Return the pictures of the data set ``spec.dataset`` below ``root``.

    Classes are ordered by category id, and are those of both parts' ``categories``.
    Raises DataError for a missing layout or a faulty annotation file, naming file and entry.
    """
    dataset = spec.dataset or domain
    base, folder = _base(root, dataset)
    annotations = [_Annotations(folder / f"{dataset}_{part}.json") for part in PARTS]
    names = _merged(annotations[0], annotations[1])
    ids = sorted(names)
    label_of = {category: label for label, category in enumerate(ids)}
    train, test = (part.pairs(base, label_of) for part in annotations)
    require_pictures(f"{root}/{dataset}", len(train), len(test), len(ids))
    classes = tuple(names[category] for category in ids)
    return Listing(root=root, classes=classes, train=train, test=test, was_split=True)


def _base(root: Path, dataset: str) -> tuple[Path, Path]:
    """Return what file names are relative to, and the folder of the annotations."""
    names = [f"{dataset}_{part}.json" for part in PARTS]
    for base in (root, root / dataset):
        if all(is_file(base / "annotations" / name) for name in names):
            return base, base / "annotations"
    raise DataError(
        f"{root}: expected annotations/{names[0]} and {names[1]}, not found",
        fix=LAYOUT.format(root=root, dataset=dataset),
    )


def _merged(train: _Annotations, test: _Annotations) -> dict[int, str]:
    """Return the names of both parts' categories by id; raise DataError where they disagree."""
    for category, name in test.categories.items():
        if train.categories.setdefault(category, name) != name:
            raise DataError(
                f"{test.path}: category {category} is {name!r} here and "
                f"{train.categories[category]!r} in {train.path.name}",
                fix="take both files from one release",
            )
    id_of: dict[str, int] = {}
    for category, name in train.categories.items():
        if id_of.setdefault(name, category) != category:
            raise DataError(
                f"{train.path}: categories {id_of[name]} and {category} are both {name!r}; "
                "expected one name each",
                fix="give each category a name of its own",
            )
    return train.categories


class _Annotations:
    """One annotation file, checked: categories by id, file names and categories by image id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        document = self._document()
        self.categories = self._categories(document)
        self.files = self._files(document)
        self.category_of = self._labels(document)

    def pairs(self, base: Path, label_of: Mapping[int, int]) -> Pairs:
        """Return the path and label of every annotated picture, by image id."""
        # Resolved: a symbolic link below the root may lead out of it.
        root = resolved(base)
        return tuple(
            (self._inside(base, root, self.files[image]), label_of[self.category_of[image]])
            for image in sorted(self.category_of)
        )

    def _inside(self, base: Path, root: Path, name: str) -> Path:
        path = base / name
        if not resolved(path).is_relative_to(root):
            raise self._fault(f"file_name {name!r} leads out of {base}")
        return path

    def _document(self) -> dict[str, object]:
        data = read_limited(self.path, limit_bytes=MAX_BYTES, what="annotation file")
        try:
            text = data.decode("utf-8")
            # Before parsing: json recurses, and a deep text would exhaust the stack.
            _refuse_deep(text)
            document = json.loads(text, parse_int=_short_int, parse_constant=_no_constant)
        except ValueError as err:
            raise self._fault(f"not JSON: {err}") from err
        if not isinstance(document, dict):
            raise self._fault(f"expected an object at the top, got {show(document)}")
        return document

    def _categories(self, document: Mapping[str, object]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, entry in self._entries(document, "categories", MAX_CATEGORIES):
            identity = self._id(entry, "id", place)
            name = unicodedata.normalize("NFC", self._text(entry, "name", place))
            if identity in names:
                raise self._fault(f"{place}.id: {identity} stands twice")
            names[identity] = name
        return names

    def _files(self, document: Mapping[str, object]) -> dict[int, str]:
        files: dict[int, str] = {}
        for place, entry in self._entries(document, "images", MAX_IMAGES):
            identity = self._id(entry, "id", place)
            name = self._text(entry, "file_name", place)
            if identity in files:
                raise self._fault(f"{place}.id: {identity} stands twice")
            if not _is_plain(name):
                raise self._fault(
                    f"{place}.file_name: expected a picture below the root, got {name!r}"
                )
            files[identity] = name
        return files

    def _labels(self, document: Mapping[str, object]) -> dict[int, int]:
        category_of: dict[int, int] = {}
        for place, entry in self._entries(document, "annotations", MAX_IMAGES):
            image = self._id(entry, "image_id", place)
            category = self._id(entry, "category_id", place)
            if image not in self.files:
                raise self._fault(f"{place}.image_id: no image {image}")
            if category not in self.categories:
                raise self._fault(f"{place}.category_id: no category {category}")
            if category_of.setdefault(image, category) != category:
                raise self._fault(f"{place}.image_id: image {image} has two categories")
        missing = next((image for image in self.files if image not in category_of), None)
        if missing is not None:
            raise self._fault(f"images: image {missing} has no annotation")
        return category_of

    def _entries(
        self, document: Mapping[str, object], name: str, limit: int
    ) -> list[tuple[str, Mapping[str, object]]]:
        entries = document.get(name)
        if not isinstance(entries, list) or not 1 <= len(entries) <= limit:
            got = f"{len(entries)} entries" if isinstance(entries, list) else show(entries)
            raise self._fault(f"{name}: expected a list of 1 to {limit} entries, got {got}")
        bad = next((i for i, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if bad is not None:
            raise self._fault(f"{name}[{bad}]: expected an object, got {show(entries[bad])}")
        return [(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]

    def _id(self, entry: Mapping[str, object], name: str, place: str) -> int:
        value = entry.get(name)
        # Not isinstance: JSON's true would pass as 1.
        if type(value) is not int:
            raise self._fault(f"{place}.{name}: expected a whole number, got {show(value)}")
        return value

    def _text(self, entry: Mapping[str, object], name: str, place: str) -> str:
        value = entry.get(name)
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 500:
            raise self._fault(f"{place}.{name}: expected printable text, got {show(value)}")
        return value

    def _fault(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}", fix="take the file from the challenge's kit")


def _is_plain(name: str) -> bool:
    return stays_below(name) and PurePosixPath(name).suffix.lower() in SUFFIXES


def _refuse_deep(text: str) -> None:
    """Raise ValueError where brackets outside strings nest deeper than MAX_DEPTH."""
    # Strings match first and whole, so a bracket inside one does not count.
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"expected at most {MAX_DEPTH} levels")
        elif token in "]}":
            depth -= 1


def _short_int(text: str) -> int:
    # To parse a number takes time that grows with the square of its digits.
    if len(text) > _INT_DIGITS:
        raise ValueError(f"expected numbers of at most {_INT_DIGITS} digits, got {len(text)}")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"expected numbers, got {text}")
