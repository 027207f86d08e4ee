"""Weights that a package of somebody else carries become a file of ours, in a folder of the user's.

Rules of this file: it runs nothing of that package, whose folder is looked up without an import.
Both digests are pinned: of the file before it is read, and of ours before it is written. What is
written is what ``weights`` reads.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch

from toolchain.core import digest, files
from toolchain.core.errors import UsageError, WeightsError
from toolchain.training.adapt import backbones
from toolchain.training.adapt.backbones import Backbone, Carrier
from toolchain.training.adapt.weights import LIMIT_BYTES, WeightsFile, check, read, untrained


def fetch(name: str, source: Path | None = None) -> Path:
    """Bring the weights of the backbone ``name`` to where ``load_backbone`` looks for them.

    They are read from ``source``, a copy of the carrier's file, or from the installed package of
    the carrier. Nothing is read where the right weights are there already. Returns their path.
    Raises UnknownNameError; UsageError for a backbone whose weights no other package carries;
    WeightsError for a package that is not installed and for another file; StorageError.
    """
    backbone = backbones.get(name)
    carrier = backbone.carrier
    if carrier is None:
        fix = "name your weights file in the recipe: weights, weights_sha256"
        raise UsageError(
            f"backbone {name!r}: expected one whose weights a package of somebody else carries, "
            f"got one whose weights are {backbone.weights}",
            fix="there is nothing to fetch" if backbone.weights == "shipped" else fix,
        )
    path = backbone.fetched_path
    if source is None and _is_there(backbone, path):
        return path
    data = _converted(backbone, carrier, source or _in_package(backbone, carrier))
    files.make_folder(path.parent, fix="set XDG_DATA_HOME to a folder that you may write to")
    files.write_atomic(path, data, overwrite=True)
    return path


def _is_there(backbone: Backbone, path: Path) -> bool:
    """Tell whether the right weights lie at ``path``; damaged ones are fetched anew."""
    if not files.is_file(path):
        return False
    data = files.read_limited(path, limit_bytes=LIMIT_BYTES, what="fetched weights")
    return digest.sha256(data) == backbone.weights_sha256


def _in_package(backbone: Backbone, carrier: Carrier) -> Path:
    spec = find_spec(carrier.package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if files.is_file(path := Path(folder) / carrier.file):
            return path
    raise WeightsError(
        f"backbone {backbone.name!r}: expected the package {carrier.package!r} with its file "
        f"{carrier.file}, got {'no such file in it' if spec else 'no such package'}",
        fix=f"{backbone.how_to_fetch}; or name a copy of the file: da3 backbones fetch "
        f"{backbone.name} --from {Path(carrier.file).name}",
    )


def _converted(backbone: Backbone, carrier: Carrier, path: Path) -> bytes:
    """Return the carrier's tensors under the backbone's names, as a safetensors file."""
    origin = WeightsFile(
        path,
        carrier.sha256,
        backbone.name,
        fix=f"this is another file than {Path(carrier.file).name} of {carrier.requirement}, or "
        "damaged: fetch that one, or name your own in a recipe: weights, weights_sha256",
    )
    theirs, _ = read(origin)
    expected = untrained(backbone, seed=0).state_dict()
    # The order is part of what the carrier's record promises; counts and shapes are checked.
    names = [*expected, *list(theirs)[len(expected) :]]
    # Safetensors takes no views and no other order of the axes.
    values = [tensor.clone(memory_format=torch.contiguous_format) for tensor in theirs.values()]
    tensors = dict(zip(names, values, strict=False))
    check(expected, tensors, origin, backbone.classifier)
    data = safetensors.torch.save(tensors)
    if (actual := digest.sha256(data)) != backbone.weights_sha256:
        raise WeightsError(
            f"backbone {backbone.name!r}: expected weights of {backbone.weights_sha256} out of "
            f"{path}, got {actual}",
            fix="install the safetensors of constraints.txt",
        )
    return data
