"""The document as tables of text, for a terminal and for a page alike.

Rules of this file: the JSON document in, cells out. Every number comes from the document. A part
that is not in it has no table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

NAMES = {
    "bundle": "swap, from the bundle",
    "installed": "swap, installed",
    "whole": "a whole session per domain",
    "shared": "sessions with shared tensors",
    "shared, extended": "the same, without the fast layout",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table called ``key``; its first column is text, unless ``text`` the others are numbers."""

    key: str
    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: bool = False


def tables(document: Document) -> list[Table]:
    """Return every table that the document has figures for, the judged figures first."""
    makers: Mapping[str, Callable[[Document], Iterable[Table]]] = {
        "latency": _latency,
        "swap": _swap,
        "switch": _switch,
        "memory": _memory,
        "load": _load,
        "overhead": _overhead,
    }
    parts = document["parts"]
    return [
        _figures(document),
        *(table for name, make in makers.items() if name in parts for table in make(parts[name])),
    ]


def verdict(document: Document, name: str) -> str:
    """Return ``met`` or ``missed``, and nothing where that would mean nothing.

    Targets are for the standard run on ResNet-50 at 224 px.
    """
    own = document["settings"]
    standard = own["backbone"] == "resnet50" and own["side"] == 224 and not own["quick"]
    if name not in document or not standard:
        return ""
    target = document["targets"][name]
    least = target["sense"] == "least"
    met = document[name] >= target["value"] if least else document[name] <= target["value"]
    return "met" if met else "missed"


def _figures(document: Document) -> Table:
    rows = []
    for name, target in document["targets"].items():
        value = _number(document[name]) if name in document else "not measured"
        goal = f"at {target['sense']} {target['value']:g}"
        rows.append((name, value, goal, verdict(document, name), target["what"]))
    return Table(
        "figures",
        "Figures and targets",
        ("Few rounds: these figures mean nothing. " if document["settings"]["quick"] else "")
        + "Targets are for ResNet-50 at 224 px on a CPU; they are shown, never enforced.",
        ("figure", "measured", "target", "", "what"),
        tuple(rows),
        text=True,
    )


def _latency(part: Document) -> Iterable[Table]:
    yield Table(
        "states",
        "Latency by state of the gates",
        f"Batch 1, without preprocessing; clock {part['clock']}; against the first row, in the "
        "same round.",
        ("model", "median ms", "p95 ms", "ratio", "quartiles"),
        tuple(
            (name, _ms(t["median_ms"]), _ms(t["p95_ms"]), f"{t['ratio']:.3f}", _ratios(t))
            for name, t in part["states"].items()
        ),
    )
    yield Table(
        "blocks",
        "Gates, block by block",
        "Gain: what closing this gate alone saves, all others open. Cost: what deciding it at run "
        "time takes while it is open, all others closed. A gate pays if its block is open less "
        "often than the break-even rate.",
        ("block", "gain ms", "quartiles", "cost ms", "quartiles", "break-even"),
        (*(_block(name, block) for name, block in part["blocks"].items()), *_together(part)),
    )


def _together(part: Document) -> Iterable[tuple[str, ...]]:
    if part["together"]:
        gain, cost, rate = (part["together"][key] for key in ("gain_ms", "cost_ms", "break_even"))
        yield "all at once", _ms(gain), "-", _ms(cost), "-", "-" if rate is None else f"{rate:.0%}"


def _block(name: str, block: Document) -> tuple[str, ...]:
    rate, cost = block["break_even"], block["cost"]
    bound = "" if cost is None or cost["measurable"] else "at least "
    return (
        name,
        *_difference(block["gain"]),
        *_difference(cost),
        "-" if rate is None else f"{bound}{rate:.0%}",
    )


def _difference(change: Document | None) -> tuple[str, str]:
    if change is None:
        return "not measured", "-"
    low, high = change["quartiles_ms"]
    value = _ms(change["ms"]) if change["measurable"] else f"not measurable ({_ms(change['ms'])})"
    return value, f"{_ms(low)} to {_ms(high)}"


def _swap(part: Document) -> Iterable[Table]:
    titles = {"first": "the first swap of a process", "again": "later swaps"}
    for phase, title in titles.items():
        ready, answered = part[phase]["ready"], part[phase]["answered"]
        yield Table(
            phase,
            f"Swapping a domain: {title}",
            "From files that were read before until ready, and until the first answer; every "
            "digest and slot verified, the self-test apart "
            f"({part['selftest_ms']:.0f} ms). {_memory_note(phase)}",
            ("way", "ready ms", "p95 ms", "times faster", "answered ms", "p95 ms"),
            tuple(
                (
                    NAMES[kind],
                    _ms(t["median_ms"]),
                    _ms(t["p95_ms"]),
                    f"{1 / t['ratio']:.1f}" if "whole" in ready else "-",
                    _ms(answered[kind]["median_ms"]),
                    _ms(answered[kind]["p95_ms"]),
                )
                for kind, t in ready.items()
            ),
        )


def _memory_note(phase: str) -> str:
    if phase == "first":
        return "The new session needs memory that the process does not have yet."
    return "The new session finds the memory of those that were let go."


def _switch(part: Document) -> Iterable[Table]:
    yield Table(
        "switch",
        "Switching between loaded domains",
        "A request after another domain's, against the next one to the same domain; clock "
        f"{part['clock']}.",
        ("way", "staying ms", "switching ms", "p95 ms", "adds", "quartiles"),
        tuple(
            (
                NAMES[kind],
                _ms(t["staying_ms"]),
                _ms(t["switched_ms"]),
                _ms(t["switched_p95_ms"]),
                f"{t['overhead']:+.2%}",
                " to ".join(f"{edge:+.2%}" for edge in t["overhead_quartiles"]),
            )
            for kind, t in part["ways"].items()
        ),
    )


def _memory(part: Document) -> Iterable[Table]:
    yield Table(
        "memory",
        "Memory of a further domain",
        f"A domain's own tensors are {_mib(part['slots_bytes'])} MiB. Each way in a process of its "
        "own; every domain asked once.",
        (
            "way",
            "domains",
            "one, MiB",
            "all, MiB",
            "each, MiB",
            "of its tensors",
            "file, MiB",
        ),
        tuple(
            (
                NAMES.get(kind, f"swap, {t['domains']} domains"),
                str(t["domains"]),
                _mib(t["first_bytes"]),
                _mib(t["all_bytes"]),
                _mib(t["resident_bytes_each"]),
                f"{t['ratio']:.2f}",
                _mib(t["file_bytes"]),
            )
            for kind, t in part["ways"].items()
        ),
    )


def _load(part: Document) -> Iterable[Table]:
    memory = part["memory"]
    yield Table(
        "load",
        f"Requests from {part['clients']} threads while domains are swapped",
        f"Slices with and without swaps in turn. Memory {_mib(memory['before_bytes'])} MiB before "
        f"and {_mib(memory['after_bytes'])} MiB after the swaps of installed domains.",
        (
            *("swaps from", "swaps", "per s", "answers per s", "without", "ratio"),
            *("CPU ms each", "without", "failed", "mixed"),
        ),
        tuple(
            (
                kind,
                str(row["swaps"]),
                f"{row['swaps_per_s']:.1f}",
                f"{row['answers_per_s']:.1f}",
                f"{row['answers_per_s_without']:.1f}",
                f"{row['ratio']:.3f}",
                _ms(row["cpu_ms"]),
                _ms(row["cpu_ms_without"]),
                str(row["failed"]),
                str(row["mixed"]),
            )
            for kind, row in part["rows"].items()
        ),
    )


def _overhead(part: Document) -> Iterable[Table]:
    runner = part["runner"]
    low, high = runner["difference_quartiles_ms"]
    yield Table(
        "overhead",
        "The runner around onnxruntime",
        f"The same graph and the same {part['slots']} tensors, batch 1; clock {part['clock']}.",
        ("bare ms", "runner ms", "adds ms", "quartiles", "noise ms"),
        (
            (
                _ms(part["bare"]["median_ms"]),
                _ms(runner["median_ms"]),
                f"{runner['difference_ms']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                f"{runner['noise_ms']:.3f}",
            ),
        ),
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ms(value: float) -> str:
    places = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    return f"{value:.{places}f}"


def _mib(value: float) -> str:
    return f"{value / 2**20:.1f}"


def _ratios(timing: Document) -> str:
    low, high = timing["ratio_quartiles"]
    return f"{low:.3f} to {high:.3f}"
