"""Figures as pictures: ratios with their floors and goals, sample domains, and rates of gates.

Rules of this file: a JSON document in, one image file out. It computes nothing but means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import matplotlib

# Before pyplot comes in, which would look for a display.
matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from toolchain.bench.latency import STATES
from toolchain.bench.tables import Document

_COLOURS = {"if": "#2f6f9f", "rows": "#6fa3c4", "static": "#c9a24b", "if loop": "#2f6f9f"}
_SHARES = {"accuracy": "#2f6f9f", "head_accuracy": "#b9b9b9", "executed_share": "#c9a24b"}
_LABELS = {"if": "swap, if", "rows": "swap, rows", "static": "static", "if loop": "if, 16 runs"}


def draw(document: Document, path: Path) -> None:
    """Draw the document's figures into ``path``; its suffix chooses PNG or SVG."""
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.6), width_ratios=(1.25, 1, 1))
    large = document["resnet50"]
    _bars(axes[0], large["one"], ("if", "rows", "static"), "ResNet-50, batch 1")
    _marks(axes[0], large["floors"], document["targets"])
    _bars(axes[1], large["many"], ("rows", "if loop"), "ResNet-50, batch 16")
    _marks(axes[1], large["floors"], {})
    _samples(axes[2], document["samples"])
    figure.suptitle(
        f"Time against the plain backbone, onnxruntime {document['versions']['onnxruntime']}, "
        f"one thread, {document['machine']['processor']}",
        fontsize=10,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def gates(rates: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw a map into ``path``, SVG or PNG: how often each gate is open, by domain.

    ``rates``: by domain and gate, in 0..1, the gates in the net's order; every domain has the same.
    """
    names = list(next(iter(rates.values())))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gates"}):
        figure, axes = plt.subplots(figsize=(2.2 + 0.75 * len(names), 1.3 + 0.4 * len(rates)))
        shares = [[by_gate[name] for name in names] for by_gate in rates.values()]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, by_gate in enumerate(shares):
            for column, share in enumerate(by_gate):
                ink = "white" if share > 0.6 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink)
        labels = [f"{domain}, mean {100 * fmean(by.values()):.0f}" for domain, by in rates.items()]
        axes.set_yticks(range(len(rates)), labels)
        axes.set_xticks(range(len(names)), names, rotation=30)
        axes.set_title("Test pictures for which a gate is open, in per cent", fontsize=10)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=130, metadata=metadata)
        plt.close(figure)


def _bars(axes: Axes, group: Document, forms: tuple[str, ...], title: str) -> None:
    width = 0.8 / len(forms)
    for place, form in enumerate(forms):
        timings = [group[f"{form} {state}"] for state in STATES]
        ratios = [t["ratio"] for t in timings]
        spread = [
            [max(0.0, t["ratio"] - t["ratio_quartiles"][0]) for t in timings],
            [max(0.0, t["ratio_quartiles"][1] - t["ratio"]) for t in timings],
        ]
        at = [i - 0.4 + width * (place + 0.5) for i in range(len(STATES))]
        axes.bar(at, ratios, width * 0.94, yerr=spread, color=_COLOURS[form], label=_LABELS[form])
        for x, value in zip(at, ratios, strict=True):
            axes.text(x, 0.02, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color="white")
    axes.axhline(1.0, color="#444444", linewidth=0.8)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(STATES)), ["all open", "half closed", "all closed"])
    axes.set_ylim(0, 1.45)
    axes.spines[["top", "right"]].set_visible(False)


def _marks(axes: Axes, floors: Document, targets: Document) -> None:
    """Draw each state's floor (multiply-adds that run) and, where there is one, its target."""
    for place, state in enumerate(STATES):
        ends = (place - 0.45, place + 0.45)
        label = "" if place else "floor: share of multiply-adds"
        axes.hlines(floors[state], *ends, color="#2a7a3b", linestyle=":", label=label)
        if f"{state}_ratio" in targets:
            label = "" if place else "target: at most"
            target = targets[f"{state}_ratio"]
            axes.hlines(target, *ends, color="#b03030", linestyle="--", label=label)
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def _samples(axes: Axes, samples: Document) -> None:
    trained = {domain: got for domain, got in samples.items() if got}
    for place, got in enumerate(trained.values()):
        for offset, (key, colour) in enumerate(_SHARES.items()):
            value = got[key] or 0.0
            x = place - 0.27 + 0.27 * offset
            axes.bar(x, value, 0.25, color=colour, label=None if place else key.replace("_", " "))
            axes.text(x, 0.02, f"{value:.2f}", ha="center", va="bottom", fontsize=8, rotation=90)
    axes.set_title("resnet20, sample domains", fontsize=10)
    axes.set_xticks(range(len(trained)), list(trained))
    axes.set_ylim(0, 1.45)
    axes.spines[["top", "right"]].set_visible(False)
    if trained:
        axes.legend(fontsize=8, frameon=False, loc="upper right")
