"""Plots of what was measured.

Rules of this file: a JSON document in, a picture out; it computes nothing but sums. Text stays
text, so that a reader can search, scale and print it; nothing in a plot refers to anything outside
of it. The plots of ``da3 bench`` are SVG elements that take their text colour from the page. The
one of ``da3 memory`` is a file of its own, SVG or PNG by its suffix. Needs matplotlib.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.bench.tables import NAMES, Document
from toolchain.core.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes", Document], None]

# Stands for the page's own text colour until the SVG is written.
_INK = "#010203"
_OURS, _OTHER, _THIRD = "#3a86c8", "#c9892b", "#5aa469"

SUFFIXES = (".svg", ".png")
PEAK_PARTS = {
    "stored_measured": ("kept for the backward pass", _OURS),
    "optimiser": ("optimiser's state", _OTHER),
    "gradients": ("gradients", _THIRD),
    "rest": ("rest of the peak", "#b7b7b7"),
}
_COLOURS = {
    "bundle": _OURS,
    "installed": "#7fb6e0",
    "whole": _OTHER,
    "shared": "#d8ac66",
    "shared, extended": "#b7a58a",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot that stands below the table ``key``: what it shows in words, and the SVG element."""

    key: str
    caption: str
    svg: str


def plots(document: Document) -> list[Plot]:
    """Return the plots of the parts that the document has."""
    return [
        Plot(key, caption, _svg(key, draw, document["parts"][part]))
        for key, part, caption, draw in _drawings()
        if part in document["parts"]
    ]


def _drawings() -> Iterable[tuple[str, str, str, Draw]]:
    """Yield key, part, caption and drawing of each plot."""
    yield "states", "latency", "Median latency by state of the gates; quartiles as lines", _states
    yield "blocks", "latency", "What skipping a block saves and what its gate costs", _blocks
    yield "again", "swap", "Time until a domain is ready (logarithmic)", _ready
    yield "memory", "memory", "Resident memory by number of domains", _resident
    yield "load", "load", "Answers per second, slice by slice", _slices


def _svg(name: str, draw: Draw, part: Document) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The salt keeps the identifiers of two plots on one page apart, and the same for ever.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        draw(figure.subplots(), part)
        data = io.StringIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    text = data.getvalue()
    element = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S).replace(
        _INK, "currentColor"
    )


def _states(axes: Axes, part: Document) -> None:
    names = list(part["states"])
    timings = [part["states"][name] for name in names]
    colours = {"plain": "#8a8a8a", "swap": _OURS}
    values = [t["median_ms"] for t in timings]
    spread = [
        [t["median_ms"] - t["quartiles_ms"][0] for t in timings],
        [t["quartiles_ms"][1] - t["median_ms"] for t in timings],
    ]
    bars = axes.barh(
        names,
        values,
        xerr=spread,
        color=[colours.get(name.partition(",")[0], _OTHER) for name in names],
        ecolor=_INK,
    )
    axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=6)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("ms")


def _blocks(axes: Axes, part: Document) -> None:
    names = list(part["blocks"])
    places = range(len(names))
    gains = [part["blocks"][name]["gain"]["ms"] for name in names]
    axes.bar([p - 0.2 for p in places], gains, 0.38, color=_OURS, label="saved when closed")
    costs = [part["blocks"][name]["cost"] for name in names]
    if all(costs):
        values = [cost["ms"] for cost in costs]
        axes.bar([p + 0.2 for p in places], values, 0.38, color=_OTHER, label="cost while open")
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xticks(list(places), names, rotation=45, ha="right")
    axes.set_ylabel("ms")
    _legend(axes, 2)


def _ready(axes: Axes, part: Document) -> None:
    kinds = list(part["first"]["ready"])
    places = range(len(kinds))
    for shift, phase, alpha in ((-0.2, "first", 1.0), (0.2, "again", 0.6)):
        values = [part[phase]["ready"][kind]["median_ms"] for kind in kinds]
        bars = axes.barh(
            [p + shift for p in places],
            values,
            0.38,
            color=[_COLOURS[kind] for kind in kinds],
            alpha=alpha,
        )
        axes.bar_label(bars, [f"{v:.1f} ({phase})" for v in values], padding=6, fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_yticks(list(places), [NAMES[kind] for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("ms")


def _resident(axes: Axes, part: Document) -> None:
    for kind, figures in part["ways"].items():
        series = [value / 2**20 for value in figures["series"]]
        counts = range(1, len(series) + 1)
        if kind == "bundle, many":
            axes.plot(counts, series, color=_OURS, linestyle=":", label="swap, same bundles again")
        else:
            axes.plot(counts, series, color=_COLOURS[kind], marker=".", label=NAMES[kind])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("domains")
    axes.set_ylabel("MiB")
    _legend(axes, 2)


def _slices(axes: Axes, part: Document) -> None:
    offset = 0
    for kind, row in part["rows"].items():
        both = [*zip(row["slices"]["without"], row["slices"]["with"], strict=True)]
        places = range(offset, offset + len(both))
        # matplotlib leaves an empty label out of the legend, which so names each colour once.
        label = kind == "installed"
        axes.plot(
            places, [w for w, _ in both], color="#8a8a8a", marker="o", label="without" * label
        )
        axes.plot(places, [w for _, w in both], color=_OURS, marker="o", label="swapping" * label)
        axes.text(offset, 0, kind, va="bottom")
        offset += len(both) + 1
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.set_xticks([])
    axes.set_ylabel("answers per s")
    _legend(axes, 2)


def _legend(axes: Axes, columns: int) -> None:
    """Put the legend above the plot, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns)


def check_suffix(path: Path) -> None:
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


def peak_parts(row: Document) -> dict[str, int]:
    """Return the bars of one method: bytes by part of ``PEAK_PARTS``.

    They add up to the peak. The backward pass makes gradients while it frees kept tensors, so not
    all gradients need be there at the fullest moment.
    """
    left, bars = int(row["peak"]), {}
    for name in PEAK_PARTS:
        bars[name] = left if name == "rest" else min(left, int(row[name]))
        left -= bars[name]
    return bars


def training(document: Document, backbone: str, suffix: str) -> bytes:
    """Return the plot of one backbone's methods as an SVG or PNG file's content."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows, run = document[backbone], document["conditions"]["runs"][backbone]
    names = list(rows)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": backbone}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 1.4 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = [0.0] * len(names)
        for part, (label, colour) in PEAK_PARTS.items():
            values = [peak_parts(rows[name])[part] / 2**20 for name in names]
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
