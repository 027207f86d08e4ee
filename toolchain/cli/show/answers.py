"""Views of answers: one block per frame for people, one mapping for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolchain.cli.show import layout
from toolchain.cli.show.output import complain

if TYPE_CHECKING:
    from toolchain.core.errors import Da3Error
    from toolchain.device.runtime import Domain, Frame, Prediction

OPEN, CLOSED = "#", "."


def answer_document(frame: Frame, domain: Domain, top: int) -> dict[str, Any]:
    """Return a frame's answer, or its error; every key is there in any case."""
    found, err = frame.prediction, frame.error
    return {
        "source": frame.source,
        "index": frame.index,
        "at_s": frame.at_s,
        "label": found and found.label,
        "probability": found and found.probability,
        "top": found and _likeliest(found, domain, top),
        "gates": found and dict(found.gates),
        "ms": found and round(found.ms, 3),
        "error": err and {"type": type(err).__name__, "message": err.message, "fix": err.fix},
    }


def answer_lines(frame: Frame, found: Prediction, domain: Domain, top: int) -> list[str]:
    """Return the block of a frame that was answered with ``found``."""
    rows = [
        (one["label"], layout.percent(one["probability"]), layout.bar(one["probability"]))
        for one in _likeliest(found, domain, top)
    ]
    wide = max(layout.width(layout.clean(label)) for label, _, _ in rows)
    lines = [layout.title(place(frame))]
    for label, share, bar in rows:
        space = " " * (wide - layout.width(layout.clean(label)))
        lines.append(f"  {layout.clean(label)}{space}  {share:>6}  {bar}")
    return [*lines, f"  {_gates(found)}{found.ms:.1f} ms"]


def tell(where: str, err: Da3Error) -> None:
    """Print an error that does not end the command to stderr, as one that does is printed."""
    named = where in err.message
    message = err.message if named else f"{where}: {err.message}"
    complain(message, err.fix)


def place(frame: Frame) -> str:
    """Return which frame it is: the picture, or the video with the frame's number and time."""
    if frame.at_s is None:
        return frame.source
    return f"{frame.source}  frame {frame.index}  {frame.at_s:.2f} s"


def _likeliest(found: Prediction, domain: Domain, top: int) -> list[dict[str, Any]]:
    from toolchain.device.runtime.answers import probabilities

    likely = probabilities(found.logits)
    order = (-likely).argsort(kind="stable")[:top]
    return [
        {"class": int(i), "label": domain.classes[i], "probability": float(likely[i])}
        for i in order
    ]


def _gates(found: Prediction) -> str:
    if not found.gates:
        return "no gates  "
    states = found.gates.values()
    drawn = "".join(OPEN if state else CLOSED for state in states)
    return f"gates {drawn}  {sum(states)} of {len(states)} open  "
