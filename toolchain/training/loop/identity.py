"""What a training depends on, as digests and plain documents.

Rules of this file: numpy only, no torch; it writes nothing. Two trainings with the same documents
and digests, the same torch and the same number of threads end in the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import digest
from toolchain.core.canonical import canonical_json, parse_json
from toolchain.core.errors import TrainingError
from toolchain.core.safetensors import LIBRARY_HEADER_BYTES, read_metadata
from toolchain.recipe import Recipe
from toolchain.recipe.spec import OPTIONAL, data_document
from toolchain.training.data.splits import DomainData, Split

Identity = Mapping[str, Any]
STATE_KEY = "da3"
"""The key of the metadata of a half-done training, whose ``identity`` says what it depends on."""
DIGESTED_PICTURES = 64
"""Pictures per split that enter the data's digest: all would mean decoding a whole folder."""

# They change what is written about a domain, never its weights.
_DESCRIPTIVE = ("title", "licence", "golden")


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values, without the folder of its file and what it leaves open."""
    document = dataclasses.asdict(recipe)
    del document["folder"]
    document["data"] = data_document(document["data"])
    # Left out, so that recipes from before these keys have the digest that they always had.
    return {k: v for k, v in document.items() if v is not None or k not in OPTIONAL}


def recipe_digest(recipe: Recipe) -> str:
    """Return the sha256 of the recipe's canonical JSON (RFC 8785), paths left out.

    Bundles carry it. Of a digest over a path, whoever guesses the path would see that it is right.
    """
    return digest.sha256(canonical_json(recipe_document(recipe.without_paths())))


def training_document(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a recipe that training depends on, flat: ``{"train.lr": 0.003, ...}``."""
    document = recipe_document(recipe)
    return dict(_flat({k: v for k, v in document.items() if k not in _DESCRIPTIVE}, ""))


def training_texts(recipe: Recipe) -> dict[str, str]:
    """Return the keys of :func:`training_document`, paths left out, each value as JSON."""
    return flat_texts(training_document(recipe.without_paths()))


def flat_texts(document: Mapping[str, Any]) -> dict[str, str]:
    """Return a document flat, ``{"train.lr": "0.003", ...}``, each value as canonical JSON."""
    return {name: canonical_json(value).decode() for name, value in _flat(document, "")}


def _flat(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def data_digest(data: DomainData) -> str:
    """Return a digest of the class names, all labels, and 64 pictures spread over each split.

    That notices another folder, another limit or a changed preprocessing. It is no proof that no
    other picture changed.
    """
    splits = [split for split in (data.train, data.test, data.validation) if split is not None]
    parts = [_split_digest(split) for split in splits]
    return digest.sha256(canonical_json([list(data.classes), parts]))


def _split_digest(split: Split) -> list[Any]:
    # unique(): of a small split each row is taken once.
    rows = np.unique(np.linspace(0, len(split) - 1, DIGESTED_PICTURES).astype(np.int64))
    pictures, _ = split.batch(rows)
    return [len(split), digest.tensor_digest(split.labels), digest.tensor_digest(pictures)]


def differences(
    then: Identity, now: Identity, words: tuple[str, str] = ("then", "now")
) -> list[str]:
    """Return one line for each entry in which two descriptions differ.

    ``words`` stand behind the entry's value in the first description and in the second one.
    """
    return [
        f"{name}: {then.get(name, 'not there')} {words[0]}, {now.get(name, 'not there')} {words[1]}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def refuse_changes(path: Path, then: Identity, now: Identity) -> None:
    """Raise TrainingError naming every difference to the half-done training in ``path``."""
    if changes := differences(then, now):
        lines = "\n  ".join(changes)
        raise TrainingError(
            f"the training to resume at {path} is another one:\n  {lines}",
            fix="undo the change, or train from the start and overwrite it",
        )


def refuse_changes_noted(path: Path, now: Identity) -> None:
    """Do as :func:`refuse_changes` for what the file ``path`` notes, as far as ``now`` says it.

    Its tensors are not read. A file without a readable note is left to whoever reads it whole.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            rest = file.read(min(int.from_bytes(start, "little"), LIBRARY_HEADER_BYTES))
        then = parse_json(read_metadata(start + rest)[STATE_KEY])["identity"]
        noted = {name: then[name] for name in now if name in then}
    except (OSError, ValueError, KeyError, TypeError):
        return
    refuse_changes(path, noted, now)
