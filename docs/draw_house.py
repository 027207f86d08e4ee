"""Draw docs/house.svg from the tables of docs/architecture.md: ``python docs/draw_house.py``.

The picture shows every room of the code on its floor. A floor is the longest way down from a room:
a room stands one floor above the highest room that it imports. Sub-rooms stand on each other in the
same way, inside their room.

Rules of this file: Python's standard library alone; the same tables give the same bytes. A test
draws the picture again and compares it with the file. This file does not decide who may import
whom: the tables do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
TABLES, PICTURE, CODE = HERE / "architecture.md", HERE / "house.svg", HERE.parent / "toolchain"

Arrows = Mapping[str, tuple[str, ...]]

# What a room is for, in the few words that fit beside its name. One without words is drawn, too.
NOTES = {
    "core": "errors, files, digests, typed fields, sealed folders",
    "pictures": "from a picture, video or camera to the input tensor",
    "recipe": "what to train: one YAML file per domain",
    "bundle": "the product: .da3b, backbone, patch",
    "training": "on a workstation, in PyTorch",
    "training/data": "pictures",
    "training/lean": "keeps little",
    "training/adapt": "methods, adaptors, gates",
    "training/memory": "what a step keeps, counted",
    "training/loop": "train, test, resume",
    "device": "on a board, or in CI",
    "device/boards": "what a board is and can do",
    "device/engine": "kits, building, the cache",
    "device/store": "what is installed",
    "device/runtime": "runs linked models: ort/ and trt/",
    "device/serve": "over HTTP",
    "device/build": "da3 build",
    "export": "checkpoint in, checked bundle out",
    "export/graph": "capture, split, link",
    "export/emit": "passes for a board: dialect, precision",
    "export/check": "parity with PyTorch",
    "export/linked": "link, check, pack",
    "export/pipeline": "da3-export",
    "export/orders": "the kits of an export",
    "export/rehearsal": "before training",
    "export/prepare": "makes a kit",
    "export/manifests": "what is written",
    "inspect": "looks into any file",
    "bench": "measures",
    "cli": "the commands da3 and da3-export",
    "cli/show": "values to lines",
    "cli/verbs": "one file per command",
    "cli/boundary": "errors to exit codes",
    "cli/app": "the tree of commands",
    "cli/options": "shared options",
    "cli/serving": "da3 run --serve",
    "cli/training": "what train and export share",
    "da3_models": "backbones",
    "da3_recipes": "recipes, as data",
}

LEFT, WIDTH, ANNEX, EDGE = 190, 800, 140, 20  # pixels
ROOF, GAP, HEAD, BOX, SPACE, PAD = 84, 34, 40, 24, 7, 14
DEVICE, HOST = ("#e3f1e1", "#4a8a45"), ("#e2ebf6", "#3b6ea5")
STYLE = 'font-family="Helvetica, Arial, sans-serif"'


@dataclass(frozen=True)
class Area:
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x of its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The y of its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The x half way between its edges."""
        return self.x + self.width / 2


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first line is ``heading``."""
    lines = text.partition(heading + "\n")[2].splitlines()[1:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), None)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def arrows(text: str, heading: str) -> Arrows:
    """Return what each name of a table may import."""
    graph = {name: tuple(re.findall(r"[\w/]+", cell)) for name, cell in rows(text, heading)}
    if not graph:
        raise ValueError(f"{TABLES.name}: expected a table that begins with {heading}")
    return graph


def floors(graph: Arrows) -> dict[str, int]:
    """Return the floor of each name: 0 for one that imports none of the others.

    Raises:
        ValueError: Names import each other in a circle.

    """
    height: dict[str, int] = {}
    while len(height) < len(graph):
        ready = [
            name
            for name, below in graph.items()
            if name not in height and all(other in height for other in below)
        ]
        if not ready:
            raise ValueError(f"a circle among {', '.join(sorted(graph.keys() - height))}")
        height |= {name: 1 + max((height[b] for b in graph[name]), default=-1) for name in ready}
    return height


def reduced(graph: Arrows) -> list[tuple[str, str]]:
    """Return the arrows that do not follow from others: a to c goes where a to b to c stands."""
    reach: dict[str, set[str]] = {}
    for name in sorted(graph, key=floors(graph).__getitem__):
        reach[name] = set(graph[name]).union(*(reach[below] for below in graph[name]))
    return [
        (name, below)
        for name in graph
        for below in graph[name]
        if not any(below in reach[other] for other in graph[name])
    ]


def stacked(graph: Arrows) -> list[list[str]]:
    """Return the names floor by floor, the highest first, each floor in the order of the table."""
    height = floors(graph)
    return [
        [name for name in graph if height[name] == floor]
        for floor in range(max(height.values(), default=-1), -1, -1)
    ]


def within(graph: Arrows, room: str) -> Arrows:
    """Return the table of ``room``'s sub-rooms, by their own names."""
    head = f"{room}/"
    return {
        name.removeprefix(head): tuple(b.removeprefix(head) for b in below if b.startswith(head))
        for name, below in graph.items()
        if name.startswith(head)
    }


class House:
    """The picture: where each room stands, then its lines."""

    def __init__(self, text: str) -> None:
        """Read the tables out of ``text``, docs/architecture.md."""
        self.rooms = arrows(text, "| room | may import |")
        self.subs = arrows(text, "| sub-room | may import |")
        heading = "| room | torch | onnx | onnxruntime |"
        self.frameworks = {
            name: [
                word
                for word, cell in zip(heading.split()[3::2], cells, strict=False)
                if cell == "yes"
            ]
            for name, *cells in rows(text, heading)
        }
        self.inside = {room: stacked(within(self.subs, room)) for room in self.rooms}
        self.areas, self.height = self._areas()

    def _need(self, room: str) -> int:
        """Return the height of a room in pixels."""
        lines = len(self.inside[room])
        return HEAD + (lines * (BOX + SPACE) + PAD - SPACE if lines else 4)

    def _areas(self) -> tuple[dict[str, Area], float]:
        """Place every room; return the places and where the ground is."""
        areas, top = {}, float(ROOF + GAP)
        for floor in stacked(self.rooms):
            own = [room for room in floor if not room.startswith("da3_")]
            height = max(map(self._need, own))
            x, width = float(LEFT), (WIDTH - (len(own) - 1) * PAD) / len(own)
            for room in own:
                areas[room] = Area(x, top, width, height)
                x += width + PAD
            for room in floor:
                if room not in own:
                    areas[room] = Area(EDGE, top, ANNEX, HEAD + 18)
            top += height + GAP
        return areas, top - GAP

    def svg(self) -> str:
        """Return the picture as SVG."""
        ground = self.height + 16
        total = ground + 118
        wide = LEFT + WIDTH + 2 * EDGE
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {total:g}" {STYLE}>',
            "  <title>The rooms of the toolchain: each imports only rooms below it</title>",
            "  <!-- Drawn by docs/draw_house.py from docs/architecture.md. -->",
            "  <defs>",
            '    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="#444"/></marker>',
            "  </defs>",
            f'  <rect width="{wide}" height="{total:g}" fill="#ffffff"/>',
            *self._walls(ground),
            *(line for room in self.rooms for line in self._room(room)),
            '  <g stroke="#444" stroke-width="1.5" fill="none">',
            *(
                f'    <path d="{self._way(*arrow)}" marker-end="url(#tip)"/>'
                for arrow in reduced(self.rooms)
            ),
            "  </g>",
            *self._legend(ground),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _walls(self, ground: float) -> Iterable[str]:
        left, right, eaves = LEFT - EDGE, LEFT + WIDTH + EDGE, ROOF + 18
        yield (
            f'  <path d="M{left - 18} {eaves} L{LEFT + WIDTH / 2:g} 10 L{right + 18} {eaves} z"'
            ' fill="#f3e3d3" stroke="#a8642a" stroke-width="1.5" stroke-linejoin="round"/>'
        )
        yield (
            f'  <rect x="{left}" y="{eaves}" width="{right - left}" height="{ground - eaves:g}"'
            ' fill="#fbfaf7" stroke="#999"/>'
        )
        yield f'  <path d="M0 {ground:g} H{right + EDGE}" stroke="#777" stroke-width="3"/>'
        yield _text(LEFT + WIDTH / 2, eaves - 24, "toolchain/", 20, bold=True, anchor="middle")

    def _room(self, room: str) -> Iterable[str]:
        area, host = self.areas[room], {"torch", "onnx"} & set(self.frameworks.get(room, ()))
        fill, stroke = HOST if host else DEVICE
        yield _box(area, fill, stroke, 'rx="6" stroke-width="1.5"')
        if room.startswith("da3_"):
            yield _text(area.middle, area.y + 24, room, 15, bold=True, anchor="middle")
            yield _text(area.middle, area.y + 44, NOTES.get(room, ""), 12, anchor="middle")
            return
        yield _named(area.x + PAD, area.y + 26, room, NOTES.get(room, ""), 17)
        right = area.right - PAD
        for word in reversed(self.frameworks.get(room, [])):
            width = 6.6 * len(word) + 14
            badge = Area(right - width, area.y + 12, width, 19)
            yield _box(badge, "#ffffff", stroke, 'rx="9"')
            yield _text(badge.middle, badge.y + 13.5, word, 11, anchor="middle")
            right -= width + 6
        y = area.y + HEAD
        for line in self.inside[room]:
            width = (area.width - 2 * PAD - (len(line) - 1) * SPACE) / len(line)
            x = area.middle - (len(line) * (width + SPACE) - SPACE) / 2
            for name in line:
                yield _box(Area(x, y, width, BOX), "#ffffff", stroke, 'rx="4"')
                label = f"{name}.py" if (CODE / room / f"{name}.py").is_file() else name
                note = NOTES.get(f"{room}/{name}", "")
                fits = 8.4 * len(label) + 6.8 * len(note) + 24 < width
                yield _named(x + 10, y + 16.5, label, note if fits else "", 13)
                x += width + SPACE
            y += BOX + SPACE

    def _way(self, room: str, below: str) -> str:
        """Return the path of an arrow from the bottom of ``room`` to what it imports."""
        start, end = self.areas[room], self.areas[below]
        left, right = max(start.x, end.x), min(start.right, end.right)
        if right > left:
            return f"M{(left + right) / 2:g} {start.bottom:g} V{end.y:g}"
        return f"M{start.middle:g} {start.bottom:g} V{end.y + 26:g} H{end.x:g}"

    def _legend(self, ground: float) -> Iterable[str]:
        y = ground + 18
        for (fill, stroke), words in (
            (DEVICE, "imports neither torch nor onnx, and so runs on a board"),
            (HOST, "may import the frameworks that are named at its right"),
        ):
            yield _box(Area(LEFT, y, 26, 16), fill, stroke, 'rx="3"')
            yield _text(LEFT + 38, y + 13, words, 13)
            y += 26
        yield (
            f'  <path d="M{LEFT + 13} {y - 2:g} V{y + 17:g}" stroke="#444" stroke-width="1.5"'
            ' marker-end="url(#tip)"/>'
        )
        yield _text(
            LEFT + 38, y + 12, "imports. An arrow that follows from others is left out.", 13
        )
        yield _text(
            LEFT + 38, y + 34, "Inside a room a box imports only boxes that stand below it.", 13
        )


def _box(area: Area, fill: str, stroke: str, more: str) -> str:
    return (
        f'  <rect x="{area.x:g}" y="{area.y:g}" width="{area.width:g}" height="{area.height:g}"'
        f' fill="{fill}" stroke="{stroke}" {more}/>'
    )


def _text(
    x: float, y: float, words: str, size: float, *, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'  <text x="{x:g}" y="{y:g}" font-size="{size:g}"{weight} text-anchor="{anchor}"'
        f' fill="#222">{escape(words)}</text>'
    )


def _named(x: float, y: float, name: str, note: str, size: float) -> str:
    """Return a name in bold and what it is for; the viewer's font decides where the note begins."""
    return (
        f'  <text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="#222">'
        f'<tspan font-weight="bold">{escape(name)}</tspan>'
        f'<tspan dx="10" font-size="{min(size, 12.5) - 0.5:g}"'
        f' fill="#444">{escape(note)}</tspan></text>'
    )


def draw(text: str) -> str:
    """Return the picture of the house that ``text``, docs/architecture.md, describes."""
    return House(text).svg()


if __name__ == "__main__":
    PICTURE.write_text(draw(TABLES.read_text(encoding="utf-8")), encoding="utf-8")
