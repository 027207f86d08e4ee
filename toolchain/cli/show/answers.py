"""Answers to pictures: a document, a line of JSON for each frame, or a block for people.

Rules of this file: a printer takes the runner with its one domain, the frames, and how many classes
to show. It returns whether a frame had an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from toolchain.cli.show import layout
from toolchain.cli.show.output import complain, write_json, write_text
from toolchain.cli.show.progress import counted

if TYPE_CHECKING:
    from toolchain.core.errors import Da3Error
    from toolchain.device import Domain, Frame, Prediction, Runner

    Printer = Callable[[Runner, Iterable[Frame], int], bool]

OPEN, CLOSED = "#", "."


def answer_document(frame: Frame, domain: Domain, top: int) -> dict[str, Any]:
    """Return a frame's answer, or its error; every key is there in any case."""
    answer, err = frame.prediction, frame.error
    return {
        "source": frame.source,
        "index": frame.index,
        "at_s": frame.at_s,
        "label": answer and answer.label,
        "probability": answer and answer.probability,
        "top": answer and _likeliest(answer, domain, top),
        "gates": answer and dict(answer.gates),
        "ms": answer and round(answer.ms, 3),
        "error": err and {"type": type(err).__name__, "message": err.message, "fix": err.fix},
    }


def complain_of(place: str, err: Da3Error) -> None:
    """Print an error that does not end the command, with its place, as the boundary prints one."""
    message = err.message if place in err.message else f"{place}: {err.message}"
    complain(message, err.fix)


def _print_document(runner: Runner, frames: Iterable[Frame], top: int) -> bool:
    (domain,) = runner.domains.values()
    # Nothing is printed before the end, so that a terminal counts meanwhile.
    pictures = [answer_document(frame, domain, top) for frame in counted(frames, "answered")]
    write_json(
        {
            "domain": domain.name,
            "release": domain.release,
            "backbone": runner.facts.backbone.name,
            "pictures": pictures,
        }
    )
    return any(picture["error"] for picture in pictures)


def _print_lines(runner: Runner, frames: Iterable[Frame], top: int) -> bool:
    (domain,) = runner.domains.values()
    failed = False
    for frame in frames:
        failed |= frame.error is not None
        write_text(json.dumps(answer_document(frame, domain, top), allow_nan=False))
    return failed


def _print_blocks(runner: Runner, frames: Iterable[Frame], top: int) -> bool:
    (domain,) = runner.domains.values()
    failed = False
    for frame in frames:
        if frame.error is not None:
            failed = True
            complain_of(_place(frame), frame.error)
        if frame.prediction is not None:
            write_text("\n".join(_block(frame, frame.prediction, domain, top)))
    return failed


PRINTERS: Mapping[str, Printer] = {
    "json": _print_document,
    "jsonl": _print_lines,
    "people": _print_blocks,
}


def _block(frame: Frame, answer: Prediction, domain: Domain, top: int) -> list[str]:
    rows = [
        (row["label"], layout.percent(row["probability"]), layout.bar(row["probability"]))
        for row in _likeliest(answer, domain, top)
    ]
    columns = max(layout.width(layout.clean(label)) for label, _, _ in rows)
    lines = [layout.title(_place(frame))]
    for label, share, bar in rows:
        space = " " * (columns - layout.width(layout.clean(label)))
        lines.append(f"  {layout.clean(label)}{space}  {share:>6}  {bar}")
    return [*lines, f"  {_gates(answer)}{answer.ms:.1f} ms"]


def _place(frame: Frame) -> str:
    """Return which frame it is: the picture, or the video with the frame's number and time."""
    if frame.at_s is None:
        return frame.source
    return f"{frame.source}  frame {frame.index}  {frame.at_s:.2f} s"


def _likeliest(answer: Prediction, domain: Domain, top: int) -> list[dict[str, Any]]:
    from toolchain.device.runtime.answers import probabilities

    shares = probabilities(answer.logits)
    # Stable: of equal shares the first class comes first.
    order = (-shares).argsort(kind="stable")[:top]
    return [
        {"class": int(i), "label": domain.classes[i], "probability": float(shares[i])}
        for i in order
    ]


def _gates(answer: Prediction) -> str:
    if not answer.gates:
        return "no gates  "
    states = answer.gates.values()
    drawn = "".join(OPEN if state else CLOSED for state in states)
    return f"gates {drawn}  {sum(states)} of {len(states)} open  "
