"""Recognise a file or folder by its content, and read it with the reader of its format.

Rules of this file: it reads the first bytes and chooses one reader. Of the formats it knows what
tells them apart, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolchain import trust
from toolchain.bundle.backbone import GRAPH_NAME
from toolchain.bundle.golden import TENSORS as GOLDEN_TENSORS
from toolchain.bundle.manifest import MANIFEST_NAME, OLDER_SCHEMAS, SCHEMA
from toolchain.core.errors import StorageError, UsageError
from toolchain.device.engine.cache import ENGINE_NAME
from toolchain.device.engine.kit import KIT_NAME
from toolchain.inspect import engine_facts, file_facts
from toolchain.inspect.engine_facts import EngineFacts, KitFacts
from toolchain.inspect.file_facts import (
    BackboneFacts,
    BundleFacts,
    CheckpointFacts,
    GoldenFacts,
    RecipeFacts,
    TensorsFacts,
    TrainingFacts,
)
from toolchain.inspect.graph_facts import GraphFacts, graph
from toolchain.training.adapt.checkpoint import INFO_FILE, TENSORS_FILE
from toolchain.trust import KeyringFacts, MetadataFacts, SiteFacts

Facts = (
    RecipeFacts
    | CheckpointFacts
    | GraphFacts
    | BundleFacts
    | BackboneFacts
    | GoldenFacts
    | TensorsFacts
    | TrainingFacts
    | KitFacts
    | EngineFacts
    | MetadataFacts
    | SiteFacts
    | KeyringFacts
)

HEAD_BYTES = 1 << 16
_TAR_MAGIC_AT = 257
_TEXT_FROM = ord("\t")
_READERS: dict[str, Callable[[Path], Facts]] = {
    "recipe": file_facts.read_recipe,
    "checkpoint": file_facts.read_checkpoint,
    "graph": graph,
    "bundle": file_facts.read_bundle,
    "backbone": file_facts.read_backbone,
    "golden": file_facts.golden,
    "training": file_facts.training,
    "tensors": file_facts.tensors,
    "kit": engine_facts.read_kit,
    "engine": engine_facts.read_engine,
    "metadata": trust.describe,
    "site": trust.describe_site,
    "keyring": trust.show,
}
KINDS = tuple(_READERS)
_RECIPE_KEY = re.compile(rb"^(domain|backbone|data|preprocess|method|adaptor|train)[ \t]*:", re.M)
# The fields of ONNX's ModelProto that a file can begin with: number and wire type of each.
_MODEL_TAGS = frozenset(b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What lies at ``path``: one of ``KINDS``, and what it says of itself.

    ``path`` is the folder for a checkpoint or backbone that was named by one of its files.
    """

    kind: str
    path: Path
    facts: Facts


def inspect(path: Path) -> Inspection:
    """Recognise and read the file or folder ``path``.

    Raises UsageError for what the toolchain never wrote, StorageError if it cannot be read, and
    what the reader of its format raises.
    """
    try:
        kind, place = _recognised(path)
    except OSError as err:
        raise StorageError(
            f"cannot read {path}: {err.strerror}", fix="check the path and its permissions"
        ) from err
    return Inspection(kind, place, _READERS[kind](place))


def _recognised(path: Path) -> tuple[str, Path]:
    """Return the kind, and the folder where several files are one thing."""
    if path.is_dir():
        return _folder(path), path
    head = _head(path)
    if head.startswith(b"oci-layout\0") or head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        return "bundle", path
    # A safetensors file: the header's length in eight bytes, then JSON. Eight characters of text
    # would make a far larger number.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _safetensors(path)
    if head.startswith(b"{"):
        # TUF lists signatures, and a folder is full of such files.
        alone = head.startswith(b'{"signatures":[')
        return ("metadata", path) if alone else (_document(path, head), path.parent)
    if b"\0" not in head and _RECIPE_KEY.search(head):
        return "recipe", path
    # A text may begin with such a byte too, but it has no control characters below the tab.
    if head and head[0] in _MODEL_TAGS and min(head) < _TEXT_FROM:
        return "graph", path
    raise _unknown(path)


def _head(path: Path) -> bytes:
    # A pipe would block, a device may never end.
    if path.exists() and not path.is_file():
        raise _unknown(path)
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _folder(path: Path) -> str:
    if (path / INFO_FILE).is_file():
        return "checkpoint"
    # An engine's folder holds the manifest of its kit as well.
    for name, kind in ((ENGINE_NAME, "engine"), (KIT_NAME, "kit")):
        if (path / name).is_file():
            return kind
    # A site has roots as well, and keys have no timestamp.
    for name, kind in (("timestamp.json", "site"), ("1.root.json", "keyring")):
        if (path / "metadata" / name).is_file():
            return kind
    manifest = path / MANIFEST_NAME
    if manifest.is_file():
        return _document(manifest, _head(manifest))
    raise _unknown(path)


def _safetensors(path: Path) -> tuple[str, Path]:
    facts = file_facts.tensors(path)
    if {tensor.name for tensor in facts.tensors} == GOLDEN_TENSORS:
        return "golden", path
    if file_facts.training_note(facts) is not None:
        return "training", path
    if path.name == TENSORS_FILE and (path.parent / INFO_FILE).is_file():
        return "checkpoint", path.parent
    return "tensors", path


def _document(path: Path, head: bytes) -> str:
    """Return the kind that a JSON file stands for; canonical JSON begins with its first key."""
    if path.name in (ENGINE_NAME, KIT_NAME):
        return _folder(path.parent)
    beside_graph = path.name == MANIFEST_NAME and (path.parent / GRAPH_NAME).is_file()
    if beside_graph or b'"da3.backbone/1"' in head:
        return "backbone"
    if path.name == INFO_FILE and head.startswith(b'{"backbone":{'):
        return "checkpoint"
    if any(f'"{schema}"'.encode() in head for schema in (SCHEMA, *OLDER_SCHEMAS)):
        raise UsageError(
            f"{path}: expected a bundle, got the manifest of one that was unpacked",
            fix="name the .da3b file: only there manifest and files can be verified together",
        )
    raise _unknown(path)


def _unknown(path: Path) -> UsageError:
    return UsageError(
        f"{path}: expected a recipe (YAML), a checkpoint folder, an ONNX file, a .da3b bundle, a "
        "backbone, kit or engine folder, a safetensors file, a signed release, a site or a folder "
        "of keys, got something else",
        fix="name one of those; whatever `da3` wrote can be inspected",
    )
