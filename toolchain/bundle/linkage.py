"""Linkage: what a linked graph is. One value, for everybody who writes, reads, runs or checks one.

Rules of this file: values only; names are written as in manifests and files (``swap-if``). A new
linked graph is one more row here, and the code in :mod:`toolchain.export.graph.link` that draws it.
It links nothing and reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Flavour = Literal["swap", "static", "staged"]
Form = Literal["if", "rows", "host"]


@dataclass(frozen=True, slots=True)
class Linkage:
    """What a linked graph is.

    ``flavour``: ``swap`` takes the domain's tensors as inputs at run time; ``static`` holds one
    domain's tensors as constants; ``staged`` is a chain of segments and takes them as inputs.

    ``form``: how gates become control flow. ``if``: one picture, each gate is an ``If``. ``rows``:
    any batch, the rows whose gate is open are gathered and computed. ``host``: the program that
    runs the segments reads each gate.
    """

    flavour: Flavour = "swap"
    form: Form = "if"

    @property
    def stem(self) -> str:
        """The name in files, manifests and reports: ``swap-if``, ``staged``."""
        return self.flavour if self.is_segmented else f"{self.flavour}-{self.form}"

    @property
    def file(self) -> str:
        """The graph's file in a bundle: ``swap-if.onnx``."""
        return f"{self.stem}.onnx"

    @property
    def role(self) -> str:
        """The role of the graph's file in a bundle's manifest."""
        return self.flavour

    @property
    def folds_domain(self) -> bool:
        """Whether one domain is inside, so that the graph takes no slots and is that domain's."""
        return self.flavour == "static"

    @property
    def takes_one_picture(self) -> bool:
        """Whether the graph's batch is 1; otherwise it is any number."""
        return self.form == "if"

    @property
    def is_segmented(self) -> bool:
        """Whether it is a chain of segments and not one graph."""
        return self.flavour == "staged"

    @property
    def is_shipped(self) -> bool:
        """Whether an export writes it into the bundle."""
        return self in SHIPPED


SWAP_IF, SWAP_ROWS = Linkage("swap", "if"), Linkage("swap", "rows")
STATIC_IF, STATIC_ROWS = Linkage("static", "if"), Linkage("static", "rows")
STAGED = Linkage("staged", "host")

LINKAGES = (SWAP_IF, SWAP_ROWS, STATIC_IF, STATIC_ROWS, STAGED)
SHIPPED = (SWAP_IF, SWAP_ROWS, STATIC_IF)
# What a kit can hold, the usual one first. A kit writes the flavour alone.
KITS = (SWAP_IF, STAGED, STATIC_IF)

# The flavours of whole graphs: each is the role of a file in a bundle.
LINKED_ROLES = tuple(dict.fromkeys(one.role for one in LINKAGES if not one.is_segmented))
FORMS = tuple(dict.fromkeys(one.form for one in LINKAGES if not one.is_segmented))
FLAVOURS = tuple(one.flavour for one in KITS)


def linkage_of(stem: str) -> Linkage | None:
    """Return the linkage that is called ``stem``; None for a name that this version lacks."""
    return next((one for one in LINKAGES if one.stem == stem), None)


def kit_linkage(flavour: str) -> Linkage:
    """Return what a kit's ``flavour`` is. Requires one of :data:`FLAVOURS`."""
    return next(one for one in KITS if one.flavour == flavour)
