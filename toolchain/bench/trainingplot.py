"""The plot of ``da3 memory``: what each method's training holds at its peak, stacked.

Rules of this file: the document in, one picture out, SVG or PNG by its suffix; it computes nothing
but sums. Needs matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolchain.core.errors import MissingPackageError, UsageError

Document = Mapping[str, Any]

SUFFIXES = (".svg", ".png")
PARTS = {
    "stored_measured": ("kept for the backward pass", "#3a86c8"),
    "optimiser": ("optimiser's state", "#c9892b"),
    "gradients": ("gradients", "#5aa469"),
    "rest": ("rest of the peak", "#b7b7b7"),
}


def require(path: Path) -> None:
    """Raise before anything is measured if ``path`` could not be drawn.

    Raises UsageError (suffix), MissingPackageError.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path.name}: expected a plot that ends in {' or '.join(SUFFIXES)}, got "
            f"{path.suffix or 'no suffix'}",
            fix="write --plot memory.svg",
        )
    if find_spec("matplotlib") is None:
        raise MissingPackageError("matplotlib", "the plot", "bench")


def parts(row: Document) -> dict[str, int]:
    """Return the bars of one method: bytes by part of ``PARTS``.

    They add up to the peak. Gradients come while what was kept goes, so not all of them need be
    there at the fullest moment.
    """
    left, found = int(row["peak"]), {}
    for name in PARTS:
        found[name] = left if name == "rest" else min(left, int(row[name]))
        left -= found[name]
    return found


def draw(found: Document, backbone: str, suffix: str) -> bytes:
    """Return the plot of one backbone's methods as an SVG or PNG file's content."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows, run = found[backbone], found["conditions"]["runs"][backbone]
    names = list(rows)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": backbone}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 1.4 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = [0.0] * len(names)
        for part, (label, colour) in PARTS.items():
            values = [parts(rows[name])[part] / 2**20 for name in names]
            axes.barh(names, values, left=left, color=colour, label=label)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_xlim(0, 1.04 * max(left))
        axes.invert_yaxis()
        axes.set_xlabel("MiB beside the weights")
        axes.set_title(f"{backbone}, {run['input']} px, batch {run['batch']}: one training step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
        data = io.BytesIO()
        metadata = {"Date": None} if suffix == ".svg" else {}
        figure.savefig(data, format=suffix.removeprefix("."), dpi=130, metadata=metadata)
    return data.getvalue()
