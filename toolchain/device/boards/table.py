"""The table of targets as rows of text: for a terminal, and for docs/targets.md.

Rules of this file: every cell comes from :mod:`toolchain.device.boards.target`. Nothing is written
twice, so the document says what the code does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolchain.device.boards.target import TARGETS, Board, SoftwareRelease, Target

HEADS = (
    "target",
    "SM",
    "memory, GiB",
    "DLA",
    "JetPack",
    "CUDA",
    "TensorRT",
    "Python",
    "precisions",
    "opset",
    "kit opset",
    "conditionals",
    "typed",
    "tensor kernels",
    "built by",
)


def rows() -> list[tuple[str, ...]]:
    """Return one row for each target, as wide as :data:`HEADS`."""
    return [_row(target) for target in TARGETS.values()]


def markdown() -> str:
    """Return the table and, below it, every fact's source."""
    return "\n".join([*_table(HEADS, rows()), "", *_sources()]) + "\n"


def _row(target: Target) -> tuple[str, ...]:
    board, release = target.board, target.release
    return (
        target.name,
        board.sm,
        ", ".join(map(str, board.memory_gib)) or "-",
        str(board.dla),
        release.jetpack or "-",
        release.cuda,
        release.tensorrt,
        release.python,
        ", ".join(board.precisions),
        str(release.opset),
        str(release.kit_opset),
        release.boundaries,
        "yes" if release.typed else "no",
        "yes" if release.conv_slots else "no",
        "build.sh" if release.scripted else "da3 build",
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _line(heads)
    yield _line(["---"] * len(heads))
    yield from map(_line, lines)


def _line(cells: Sequence[str]) -> str:
    # In Markdown a bar ends the cell.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _sources() -> Iterator[str]:
    yield "## Sources"
    listed: set[Board | SoftwareRelease] = set()
    for target in TARGETS.values():
        named: tuple[tuple[str, Board | SoftwareRelease], ...] = (
            (target.board.title, target.board),
            (_title(target.release), target.release),
        )
        for title, part in named:
            if part in listed:
                continue
            listed.add(part)
            yield from ("", f"**{title}**", "", f"* {part.source}")
            yield from (f"* {name}: {source}" for name, source in part.sources)
    notes = [(t.name, t.note) for t in TARGETS.values() if t.note]
    if notes:
        yield from ("", "**Notes**", "", *(f"* {name}: {note}" for name, note in notes))


def _title(release: SoftwareRelease) -> str:
    if not release.jetpack:
        product = "TensorRT for RTX" if release.is_rtx else "TensorRT"
        return f"{product} {release.tensorrt} on a PC"
    return f"JetPack {release.jetpack}"
