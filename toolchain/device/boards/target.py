"""The boards that kits are made for, and what the TensorRT on each can do.

Rules of this file: values and a lookup, each fact with its source; nothing is probed here. What the
machine at hand is says :mod:`toolchain.device.boards.machine`, what an installed TensorRT module
offers is found by looking at it (:mod:`toolchain.device.engine.features`), never by its version.
Where no document was found for a version, its source names the nearest earlier one that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from toolchain.core.errors import PrecisionError, UnknownNameError
from toolchain.device.boards import parsers
from toolchain.device.boards.parsers import Boundaries, Parser, Sources

Precision = Literal["fp32", "fp16", "int8"]
# Ways to run on a target, the usual one first.
FLAVOURS = ("swap", "staged", "static")
# The lowest Python that the toolchain runs on.
LOWEST_PYTHON = (3, 10)


@dataclass(frozen=True, slots=True)
class Release:
    """TensorRT as one JetPack, or a desktop package, carries it.

    ``opset``: highest ONNX opset that its parser reads in full. ``boundaries``: whether its parser
    makes the conditional input layers itself, they are repaired, or are missing for good, as
    nothing there can add them. ``typed``: precision stands in the graph (strongly typed networks);
    otherwise builder flags are needed as well. ``conv_slots``:
    convolutions may have a tensor as kernel. ``python``: of its bindings; below 3.10 an engine is
    built by ``trtexec`` from the script of the kit. ``layer_precisions``: its ``trtexec`` can hold
    single layers at a precision. ``source``: the document of versions; ``sources``: of every other
    field by its name. ``jetpack`` is empty for a package on a PC.
    """

    name: str
    jetpack: str
    cuda: str
    tensorrt: str
    python: str
    opset: int
    boundaries: Boundaries
    typed: bool
    conv_slots: bool
    source: str
    layer_precisions: bool = True
    sources: Sources = ()

    @property
    def scripted(self) -> bool:
        """Whether the board builds with ``trtexec`` alone."""
        return tuple(map(int, self.python.split("."))) < LOWEST_PYTHON


@dataclass(frozen=True, slots=True)
class Board:
    """A module: compute capability, DLA cores, and the precisions that its GPU computes in.

    ``memory_gib``: sizes it is sold with; none for a card in a PC. ``sources`` as in
    :class:`Release`. The toolchain uses no DLA; the number is told because people ask for it.
    """

    name: str
    title: str
    sm: str
    dla: int
    memory_gib: tuple[int, ...]
    precisions: tuple[Precision, ...]
    source: str
    sources: Sources = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One board with one release: ``orin-nano-jp6.2``; ``note``: what holds for this pair alone."""

    board: Board
    release: Release
    note: str = field(default="")

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return f"{self.board.name}-{self.release.name}"

    def require(self, precision: Precision) -> None:
        """Raise PrecisionError unless the board computes in ``precision``."""
        if precision not in self.board.precisions:
            have = ", ".join(self.board.precisions)
            raise PrecisionError(
                f"target {self.name}: expected one of {have}, got {precision}: {self.board.title} "
                f"(SM {self.board.sm}) does not compute in it",
                fix=f"--precision {self.board.precisions[-1]}",
            )


_ALL: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_HALF: tuple[Precision, ...] = ("fp32", "fp16")
_MODULES = "developer.nvidia.com/embedded/jetson-modules"
_MATRIX = "docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-{}/support-matrix"


def _jetson(
    name: str,
    title: str,
    sm: str,
    dla: int,
    memory_gib: tuple[int, ...],
    precisions: tuple[Precision, ...],
    matrix: str,
    detail: str = "",
) -> Board:
    """Return the row of a module; ``matrix`` names the document of its precisions."""
    sources = (("sm", "developer.nvidia.com/cuda-gpus"), ("precisions", matrix))
    source = f"{title} module, {_MODULES}" + (f"; {detail}" if detail else "")
    return Board(name, title, sm, dla, memory_gib, precisions, source, sources)


_M82 = f"TensorRT 8.2.5 support matrix, hardware and precision: no INT8; {_MATRIX.format('825')}"
_M85 = f"TensorRT 8.5.3 support matrix, hardware and precision; {_MATRIX.format('853')}"
_M10 = f"TensorRT 10.1.0 support matrix, hardware and precision; {_MATRIX.format('1010')}"
_M13 = "TensorRT 10.13 support matrix, docs.nvidia.com/deeplearning/tensorrt/10.13.3"
_NANO = _jetson("nano", "Jetson Nano", "5.3", 0, (2, 4), _HALF, _M82)
_TX2 = _jetson("tx2", "Jetson TX2", "6.2", 0, (4, 8), _HALF, _M82)
_XAVIER_NX = _jetson("xavier-nx", "Jetson Xavier NX", "7.2", 2, (8, 16), _ALL, _M85)
_XAVIER_AGX = _jetson("xavier-agx", "Jetson AGX Xavier", "7.2", 2, (16, 32, 64), _ALL, _M85)
_ORIN_NANO = _jetson("orin-nano", "Jetson Orin Nano", "8.7", 0, (4, 8), _ALL, _M10)
_ORIN_NX = _jetson(
    *("orin-nx", "Jetson Orin NX", "8.7", 2, (8, 16), _ALL, _M10),
    detail="the module of 8 GB has one DLA core",
)
_ORIN_AGX = _jetson("orin-agx", "Jetson AGX Orin", "8.7", 2, (32, 64), _ALL, _M10)
_THOR = _jetson("thor", "Jetson Thor", "11.0", 0, (64, 128), _ALL, _M13)
_RTX_MATRIX = "docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1"
_CARD = Board(
    *("desktop", "NVIDIA card in a PC", "7.5 or later", 0, (), _ALL),
    source="the card says the rest; TensorRT 10.15.1 support matrix, docs.nvidia.com/"
    "deeplearning/tensorrt/latest/getting-started/support-matrix-10/10.15.1.html",
)
_RTX_CARD = Board(
    *("desktop", "NVIDIA RTX card in a PC", "7.5, 8.6, 8.9, 12.x", 0, (), _ALL),
    source=f"TensorRT for RTX 1.5 support matrix, {_RTX_MATRIX}/1.5.html",
    sources=(
        (
            "precisions",
            "the same; INT8 is listed there for weights of matrix products, activations only "
            "in Working with Quantized Types of the same documents",
        ),
    ),
)


def _release(
    name: str, jetpack: str, cuda: str, tensorrt: str, python: str, parser: Parser, source: str
) -> Release:
    """Return the row of a release; what its parser does is the parser's."""
    return Release(
        *(name, jetpack, cuda, tensorrt, python),
        *(parser.opset, parser.boundaries, parser.typed, parser.conv_slots, source),
        layer_precisions=parser.layer_precisions,
        sources=parser.sources,
    )


_JETPACK = "developer.nvidia.com/embedded/jetpack-sdk-"
_NOTES7 = "developer.nvidia.com/embedded/jetpack/downloads"
_MIGRATION = "docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration"
_JP46 = _release(
    *("jp4.6", "4.6.1 to 4.6.6", "10.2", "8.2.1", "3.6", parsers.V8_2),
    f"JetPack 4.6.1, {_JETPACK}461; 4.6 itself carries TensorRT 8.0.1",
)
_JP51 = _release(
    *("jp5.1", "5.1 to 5.1.6", "11.4", "8.5.2", "3.8", parsers.V8_5), f"JetPack 5.1, {_JETPACK}51"
)
_JP60 = _release(
    "jp6.0", "6.0", "12.2", "8.6.2", "3.10", parsers.V8_6, f"JetPack 6.0, {_JETPACK}60"
)
_JP61 = _release(
    "jp6.1", "6.1", "12.6", "10.3", "3.10", parsers.V10_3, f"JetPack 6.1, {_JETPACK}61"
)
_JP62 = _release(
    *("jp6.2", "6.2 to 6.2.2", "12.6", "10.3", "3.10", parsers.V10_3), f"JetPack 6.2, {_JETPACK}62"
)
_JP70 = _release("jp7.0", "7.0", "13.0", "10.13", "3.12", parsers.V10_13, f"JetPack 7.0, {_NOTES7}")
_JP71 = _release("jp7.1", "7.1", "13.0", "10.13", "3.12", parsers.V10_13, f"JetPack 7.1, {_NOTES7}")
_JP72 = _release(
    *("jp7.2", "7.2, 7.2.1", "13.2", "10.16", "3.12", parsers.V10_16), f"JetPack 7.2, {_NOTES7}"
)
_JP722 = _release(
    *("jp7.2.2", "7.2.2 or later", "13.x", "11.4.1", "3.12", parsers.V11_4),
    f"Migrating TensorRT from 10.x to 11.x on Jetson, {_MIGRATION}/"
    "tensorrt-10x-to-11x-jetson.html; the Linux SBSA package",
)
_WHEELS = "pypi.nvidia.com and README.md of NVIDIA/TensorRT, release/"
_DESKTOP = (
    (_CARD, _release("trt10.3", "", "12.5", "10.3", "3.10", parsers.V10_3, _WHEELS + "10.3")),
    (_CARD, _release("trt10.13", "", "12.9", "10.13", "3.10", parsers.V10_13, _WHEELS + "10.13")),
    (_CARD, _release("trt10.16", "", "13.2", "10.16", "3.10", parsers.V10_16, _WHEELS + "10.16")),
    (
        _CARD,
        _release("trt11.4", "", "13.x", "11.4", "3.10", parsers.V11_4, "pypi.org/project/tensorrt"),
    ),
    (
        _RTX_CARD,
        _release(
            "rtx1.7", "", "13.x", "1.7", "3.10", parsers.RTX_1_7, "pypi.org/project/tensorrt-rtx"
        ),
    ),
)
_UNNAMED = (
    "the document of TensorRT 11.4.1 names Jetson AGX Orin and Jetson Thor; this module has the "
    "GPU of the former and is not named"
)


def _rows() -> Iterator[Target]:
    """Yield every target, boards from the oldest on."""
    for board in (_NANO, _TX2):
        yield Target(board, _JP46)
    for board in (_XAVIER_NX, _XAVIER_AGX):
        yield Target(board, _JP51)
    for board in (_ORIN_NANO, _ORIN_NX, _ORIN_AGX):
        for release in (_JP60, _JP61, _JP62, _JP72):
            yield Target(board, release)
        yield Target(board, _JP722, "" if board is _ORIN_AGX else _UNNAMED)
    for release in (_JP70, _JP71, _JP72, _JP722):
        yield Target(_THOR, release)
    for board, release in _DESKTOP:
        yield Target(board, release)


TARGETS: Mapping[str, Target] = {target.name: target for target in _rows()}


def find(name: str) -> Target:
    """Return the target ``name``. Raises UnknownNameError, which names the near ones."""
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS, fix="da3 doctor --targets lists them")
    return TARGETS[name]
