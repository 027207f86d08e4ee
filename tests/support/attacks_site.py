"""Hostile backbones and mirrors, each made by the function that is named after the attack.

``BACKBONES``: what the key of a backbone signs. ``MIRROR``: what can be done to the files of a site
without any key, on a USB stick, say. Both map names to functions and to the words of the refusal,
as in ``attacks_metadata.py``.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.support import samples
from tests.support.archives import read_archive
from tests.support.attacks_metadata import Attack, put, registered, unit
from tests.support.forged import OWN, Change, Forger
from tests.support.samples import edited
from tests.support.trusted import CARS, GRAPH, RESNET, WEIGHTS
from toolchain.bundle.backbone import GRAPH_NAME, BackboneFile, graph_digest
from toolchain.bundle.graphs import WEIGHTS_NAME
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.trust.unit import manifest_place

BACKBONES: dict[str, Attack] = {}
MIRROR: dict[str, Attack] = {}

# Backbones: their manifests and files, signed by their own key


NEW = {GRAPH_NAME: GRAPH + b" 2", WEIGHTS_NAME: WEIGHTS + b" 2"}
NEW_DIGEST = graph_digest(*(sha256(data) for data in NEW.values()))


def _new_backbone(edit: Change, served: Mapping[str, bytes], forger: Forger) -> None:
    """Publish another backbone, and a release of the domain that asks for it."""
    listed = tuple(BackboneFile(name, sha256(data), len(data)) for name, data in NEW.items())
    manifest = replace(samples.BACKBONE, files=listed, graph_digest=NEW_DIGEST).to_json()
    document = json.loads(manifest)
    edit(document)
    blobs = {sha256(NEW[name]): data for name, data in {**NEW, **served}.items()}
    needed = replace(OWN, graph_digest=NEW_DIGEST)
    forger.release(RESNET, canonical_json(document), blobs, backbone=needed)
    forger.change(CARS.role, unit("custom", "backbone", "graph_digest", value=NEW_DIGEST))


def _nothing(_: object) -> None:
    pass


_BLOCK = {"name": "b", "shape_in": [1], "shape_out": [1], "flops": 1, "gateable": True}
for _name, _says, _edit, _served in (
    ("backbone_of_another_name", "got the manifest of", put("name", value="resnet50"), {}),
    ("backbone_of_a_path", "name: expected", put("name", value="../x"), {}),
    ("backbone_of_another_schema", "schema: expected", put("schema", value="da3.bundle/1"), {}),
    ("backbone_of_other_weights", "got BackboneId(",
     put("weights_digest", value=samples.ZERO), {}),
    ("backbone_of_another_graph", "graph_digest: expected",
     put("graph_digest", value=samples.ZERO), {}),
    ("backbone_of_no_files", "files: expected", put("files", value=[]), {}),
    ("backbone_of_three_files", "files: expected", lambda d: d["files"].append(d["files"][0]), {}),
    ("backbone_with_a_script", "expected backbone.onnx",
     put("files", 0, "name", value="run.sh"), {}),
    ("backbone_with_a_path", "files[0].name: expected", put("files", 0, "name", value="../x"), {}),
    ("backbone_of_a_terabyte", "files[1].size: expected",
     put("files", 1, "size", value=1 << 40), {}),
    ("backbone_of_7_gigabytes", "ended before its 7516192768 bytes",
     put("files", 1, "size", value=7 << 30), {}),
    ("backbone_of_blocks_without_end", "blocks: expected",
     put("blocks", value=[_BLOCK] * 5000), {}),
    ("backbone_of_no_blocks", "blocks: expected", put("blocks", value=[]), {}),
    ("backbone_of_a_huge_shape", "expected", put("blocks", 0, "shape_in", value=[2**52]), {}),
    ("backbone_with_an_unknown_word", "unknown key", put("run", value="rm"), {}),
    ("backbone_of_other_bytes", "expected sha256", _nothing, {WEIGHTS_NAME: b"the weightz 2"}),
    ("backbone_that_is_cut", "ended before", _nothing, {WEIGHTS_NAME: b"the"}),
    ("backbone_that_goes_on", "got BackboneId(", _nothing, {WEIGHTS_NAME: b"the weights 2" * 1000}),
):  # fmt: skip
    BACKBONES[_name] = Attack(partial(_new_backbone, _edit, _served), _says)


# Mirrors: what can be done to files without a key


def _metadata(name: str, data: bytes, forger: Forger) -> None:
    forger.file(f"metadata/{name}", data)


_PAGE = b"<html><body>Welcome to the hotel. Please log in.</body></html>"
for _name, _says, _file, _data in (
    ("timestamp_that_is_empty", "MalformedError", "timestamp.json", b""),
    ("timestamp_that_is_a_page", "MalformedError", "timestamp.json", _PAGE),
    ("timestamp_of_brackets", "MalformedError", "timestamp.json", b"[" * 16000),
    ("timestamp_without_signatures", "MalformedError", "timestamp.json", b'{"signed": {}}'),
    ("timestamp_of_zeros", "MalformedError", "timestamp.json", bytes(1000)),
    ("timestamp_that_is_packed", "MalformedError", "timestamp.json", gzip.compress(bytes(1 << 20))),
    ("timestamp_that_is_not_utf8", "MalformedError", "timestamp.json", b'{"signed": "\xff"}'),
    ("root_that_is_a_page", "MalformedError", "2.root.json", _PAGE),
    ("root_of_nan", "MalformedError", "2.root.json", b'{"signatures": [], "signed": NaN}'),
    ("root_of_two_megabytes", "TooLargeError", "2.root.json", b"x" * (2 << 20)),
):
    MIRROR[_name] = Attack(partial(_metadata, _file, _data), _says)


@registered(MIRROR, "UnsignedError")
def metadata_whose_text_was_edited(forger: Forger) -> None:
    path = forger.publisher.metadata("timestamp.json")
    document = json.loads(path.read_bytes())
    document["signed"]["version"] = 9
    path.write_bytes(canonical_json(document))


@registered(MIRROR, "UnsignedError")
def metadata_without_its_signatures(forger: Forger) -> None:
    _, signed = forger.newest("timestamp")
    forger.file("metadata/timestamp.json", canonical_json({"signatures": [], "signed": signed}))


@registered(MIRROR, "got a device or a pipe")
def timestamp_that_is_a_pipe(forger: Forger) -> None:
    path = forger.publisher.metadata("timestamp.json")
    path.unlink()
    os.mkfifo(path)


@registered(MIRROR, "got a directory")
def timestamp_that_is_a_folder(forger: Forger) -> None:
    path = forger.publisher.metadata("timestamp.json")
    path.unlink()
    path.mkdir()


@registered(MIRROR, "got a device or a pipe")
def timestamp_that_leads_to_zeros_without_end(forger: Forger) -> None:
    path = forger.publisher.metadata("timestamp.json")
    path.unlink()
    path.symlink_to("/dev/zero")


@registered(MIRROR, "RepositoryError")
def timestamp_that_leads_to_itself(forger: Forger) -> None:
    path = forger.publisher.metadata("timestamp.json")
    path.unlink()
    path.symlink_to(path.name)


def new_release(forger: Forger) -> Path:
    """Publish a further release, as it should be; return where its manifest lies."""
    archive = read_archive(edited(forger.good(), put("version", value="2.0")))
    digest = archive.manifest_digest
    forger.bundle(edited(forger.good(), put("version", value="2.0")))
    return forger.site / manifest_place(CARS, CARS.manifest, digest)


@registered(MIRROR, "no such file")
def manifest_that_is_not_there(forger: Forger) -> None:
    new_release(forger).unlink()


@registered(MIRROR, "expected sha256")
def manifest_of_other_bytes(forger: Forger) -> None:
    path = new_release(forger)
    path.write_bytes(path.read_bytes().replace(b"2.0", b"6.6"))


@registered(MIRROR, "ended before")
def manifest_that_is_cut(forger: Forger) -> None:
    path = new_release(forger)
    path.write_bytes(path.read_bytes()[:100])


@registered(MIRROR, "expected a regular file")
def manifest_that_is_a_pipe(forger: Forger) -> None:
    path = new_release(forger)
    path.unlink()
    os.mkfifo(path)


@registered(MIRROR, "expected a regular file")
def manifest_that_leads_to_zeros_without_end(forger: Forger) -> None:
    path = new_release(forger)
    path.unlink()
    path.symlink_to("/dev/zero")


@registered(MIRROR, "expected a regular file")
def manifest_that_is_a_folder(forger: Forger) -> None:
    path = new_release(forger)
    path.unlink()
    path.mkdir()
