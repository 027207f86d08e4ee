"""Recipes as files: load one, find it by its domain, list them, write them as text.

Rules of this file: a name is looked up in the folders given, then in ``recipes`` of the current
directory, then among those that come with the package; the first folder that has it wins. A
recipe is read whole and checked whole, and every fault is reported at once.
"""

from __future__ import annotations

import dataclasses
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from toolchain.core.errors import Da3Error, Fault, RecipeError, UnknownNameError, UsageError
from toolchain.core.fields import read_section, show, unknown_key
from toolchain.core.files import names, read_limited
from toolchain.core.words import is_domain_name
from toolchain.recipe import yamlio
from toolchain.recipe.spec import METHOD_OPTIONS, OPTIONAL, Recipe, data_document, unused_options

SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe that can be named: the file, and the recipe or why it cannot be read."""

    name: str
    path: Path
    recipe: Recipe | None
    error: Da3Error | None = None


def load(path: Path) -> Recipe:
    """Return the recipe in the file ``path``.

    Raises RecipeError with all faults, each with its key path and fix, and StorageError or
    Da3Error where the file itself cannot be read.
    """
    data = read_limited(path, limit_bytes=yamlio.MAX_BYTES, what="recipe")
    recipe = loads(data, where=str(path), stem=path.stem)
    return dataclasses.replace(recipe, folder=path.parent)


def loads(data: bytes | str, *, where: str = "recipe", stem: str | None = None) -> Recipe:
    """Return the recipe in the text ``data``; ``stem`` is the file's name that it must carry.

    Raises RecipeError with all faults.
    """
    value, faults = yamlio.parse(data.encode() if isinstance(data, str) else data)
    if faults:
        raise RecipeError(where, faults)
    if isinstance(value, dict):
        faults.extend(_stem_fault(value.get("domain"), stem))
    return _read(value, where, faults)


def _read(value: object, where: str, faults: list[Fault], fix: str = "") -> Recipe:
    """Return the recipe in a plain value; raises RecipeError with its faults and ``faults``."""
    recipe = read_section(Recipe, "", value, faults)
    if isinstance(value, dict):
        faults.extend(unused_options(value.get("method"), value.get("adaptor")))
    if faults or recipe is None:
        raise RecipeError(where, faults, fix=fix)
    return recipe


def _stem_fault(domain: object, stem: str | None) -> Iterator[Fault]:
    if stem is None or not isinstance(domain, str) or not is_domain_name(domain):
        return
    # Some file systems hand back names decomposed.
    stem = unicodedata.normalize("NFC", stem)
    if domain != stem:
        message = f"expected the file's name {stem!r}, got {domain!r}"
        yield Fault("domain", message, f"rename the file to {domain}{SUFFIX}")


def find(name: str, folders: Sequence[Path] = ()) -> Path:
    """Return the file of the domain ``name``; raises UnknownNameError with the nearest names."""
    known = _files(folders)
    domain = unicodedata.normalize("NFC", name)
    if domain not in known:
        raise UnknownNameError("domain", name, known, fix="(list them: da3 recipes ls)")
    return known[domain]


def available(folders: Sequence[Path] = ()) -> list[Entry]:
    """Return every recipe that `find` can find, by name; an unreadable one carries its error."""
    return [_entry(name, path) for name, path in sorted(_files(folders).items())]


def _entry(name: str, path: Path) -> Entry:
    try:
        return Entry(name, path, load(path))
    except Da3Error as err:
        return Entry(name, path, None, err)


def _files(folders: Sequence[Path]) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for folder in (*folders, Path("recipes"), packaged()):
        for path in (folder / name for name in names(folder) if name.endswith(SUFFIX)):
            # The first folder that has a name wins.
            out.setdefault(unicodedata.normalize("NFC", path.stem), path)
    return out


def packaged() -> Path:
    """Return the folder of the recipes that are installed with the toolchain."""
    # The package is always unpacked (it is listed as package data, never zipped).
    return Path(str(resources.files("da3_recipes")))


def dump(recipe: Recipe, header: str = "") -> str:
    """Return ``recipe`` as YAML with ``header`` as its comment; `loads` gives back an equal one.

    Adaptor options that the method does not use are left out.
    """
    return yamlio.emit(_document(recipe), header)


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return ``recipe`` with other values: each setting is ``key.path=value``, the value in YAML.

    A later setting wins. Another method drops the adaptor options that it lacks. Raises UsageError
    for a text that is no setting, RecipeError for a key that there is not and a value that the key
    does not take, all at once.
    """
    value, faults = _document(recipe), list[Fault]()
    for setting in settings:
        path, sign, written = setting.partition("=")
        if not sign or not path.strip():
            raise UsageError(
                f"expected KEY=VALUE, got {show(setting)}", fix="such as train.lr=0.003"
            )
        *sections, name = path.strip().split(".")
        parsed, wrong = yamlio.parse(f"value: {written}".encode())
        faults.extend(dataclasses.replace(fault, path=path.strip()) for fault in wrong)
        place: Any = value
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            faults.append(unknown_key(Recipe, path.strip()))
        elif isinstance(parsed, dict):
            place[name] = parsed["value"]
    options, used = value["adaptor"], METHOD_OPTIONS.get(value["method"])
    if value["method"] != recipe.method and used is not None and isinstance(options, dict):
        value["adaptor"] = {name: item for name, item in options.items() if name in used}
    fix = f"da3 recipes show {shlex.quote(recipe.domain)} prints the keys with their values"
    return dataclasses.replace(_read(value, "--set", faults, fix), folder=recipe.folder)


def _document(recipe: Recipe) -> dict[str, Any]:
    """Return ``recipe`` as the plain values of its file."""
    value = dataclasses.asdict(recipe)
    del value["folder"]
    for name in ("golden", *OPTIONAL):
        if value[name] is None:
            del value[name]
    used = METHOD_OPTIONS[recipe.method]
    value["adaptor"] = {name: item for name, item in value["adaptor"].items() if name in used}
    value["data"] = data_document(value["data"])
    if value["data"]["dataset"] is None:
        del value["data"]["dataset"]
    return value
