"""The boards that kits are made for, and what the TensorRT on each can do.

Rules of this file: values and a lookup, each fact with its source; nothing is looked at here.
:mod:`toolchain.device.boards.machine` says what the machine at hand is.
:mod:`toolchain.device.engine.features` finds out what an installed TensorRT module offers by its
names, never by its version. A new board with a TensorRT that is known is one row of ``_JETSONS``;
a new TensorRT is a row of :mod:`toolchain.device.boards.parsers` and a release here. Where no
document was found for a version, its source names the nearest earlier one that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolchain.core.errors import PrecisionError, UnknownNameError
from toolchain.core.words import PRECISIONS, Precision
from toolchain.device.boards import parsers
from toolchain.device.boards.parsers import Boundaries, Sources

# The lowest Python that the toolchain runs on.
LOWEST_PYTHON = (3, 10)
_DESKTOP = "desktop"


@dataclass(frozen=True, slots=True)
class SoftwareRelease:
    """TensorRT as one JetPack, or a desktop package, carries it.

    ``opset`` to ``conv_slots`` and ``layer_precisions``: as those of
    :class:`toolchain.device.boards.parsers.Parser`, by the version of TensorRT. ``python``: of its
    bindings; below 3.10 an engine is built by ``trtexec`` from the script of the kit. ``source``:
    the document of versions; ``sources``: of every other field by its name. ``jetpack`` is empty
    for a package on a PC.
    """

    name: str
    jetpack: str
    cuda: str
    tensorrt: str
    python: str
    opset: int
    kit_opset: int
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

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT for RTX."""
        return self.name.startswith("rtx")


@dataclass(frozen=True, slots=True)
class Board:
    """A module: compute capability, DLA cores, and the precisions that its GPU computes in.

    ``memory_gib``: sizes it is sold with; none for a card in a PC. ``sources`` as in
    :class:`SoftwareRelease`. The toolchain uses no DLA; the table has the number because people
    ask for it.
    """

    name: str
    title: str
    sm: str
    dla: int
    memory_gib: tuple[int, ...]
    precisions: tuple[Precision, ...]
    source: str
    sources: Sources = ()

    @property
    def is_card(self) -> bool:
        """Whether it is a card in a PC, and no module with a JetPack."""
        return self.name == _DESKTOP


@dataclass(frozen=True, slots=True)
class Target:
    """One board with one release: ``orin-nano-jp6.2``; ``note``: what holds for this pair alone."""

    board: Board
    release: SoftwareRelease
    note: str = ""

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


# -- releases of TensorRT -------------------------------------------------------------------------


def _release(
    name: str, *, tensorrt: str, cuda: str, python: str, source: str, jetpack: str = ""
) -> SoftwareRelease:
    """Return the row of a release; what its parser does follows from the version of TensorRT."""
    row = parsers.parser(tensorrt)
    return SoftwareRelease(
        name=name,
        jetpack=jetpack,
        cuda=cuda,
        tensorrt=tensorrt,
        python=python,
        opset=row.opset,
        kit_opset=row.kit_opset,
        boundaries=row.boundaries,
        typed=row.typed,
        conv_slots=row.conv_slots,
        source=source,
        layer_precisions=row.layer_precisions,
        sources=row.sources,
    )


# The JetPack whose TensorRT 11 comes in the package for Arm servers (SBSA).
SBSA_RELEASE = "jp7.2.2"
_JETPACK = "developer.nvidia.com/embedded/jetpack-sdk-"
_NOTES7 = "developer.nvidia.com/embedded/jetpack/downloads"
_MIGRATION = "docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration"
_JP46 = _release(
    "jp4.6",
    jetpack="4.6.1 to 4.6.6",
    cuda="10.2",
    tensorrt="8.2.1",
    python="3.6",
    source=f"JetPack 4.6.1, {_JETPACK}461; 4.6 itself carries TensorRT 8.0.1",
)
_JP51 = _release(
    "jp5.1",
    jetpack="5.1 to 5.1.6",
    cuda="11.4",
    tensorrt="8.5.2",
    python="3.8",
    source=f"JetPack 5.1, {_JETPACK}51",
)
_JP60 = _release(
    "jp6.0",
    jetpack="6.0",
    cuda="12.2",
    tensorrt="8.6.2",
    python="3.10",
    source=f"JetPack 6.0, {_JETPACK}60",
)
_JP61 = _release(
    "jp6.1",
    jetpack="6.1",
    cuda="12.6",
    tensorrt="10.3",
    python="3.10",
    source=f"JetPack 6.1, {_JETPACK}61",
)
_JP62 = _release(
    "jp6.2",
    jetpack="6.2 to 6.2.2",
    cuda="12.6",
    tensorrt="10.3",
    python="3.10",
    source=f"JetPack 6.2, {_JETPACK}62",
)
_JP70 = _release(
    "jp7.0",
    jetpack="7.0",
    cuda="13.0",
    tensorrt="10.13",
    python="3.12",
    source=f"JetPack 7.0, {_NOTES7}",
)
_JP71 = _release(
    "jp7.1",
    jetpack="7.1",
    cuda="13.0",
    tensorrt="10.13",
    python="3.12",
    source=f"JetPack 7.1, {_NOTES7}",
)
_JP72 = _release(
    "jp7.2",
    jetpack="7.2, 7.2.1",
    cuda="13.2",
    tensorrt="10.16",
    python="3.12",
    source=f"JetPack 7.2, {_NOTES7}",
)
_JP722 = _release(
    SBSA_RELEASE,
    jetpack="7.2.2 or later",
    cuda="13.x",
    tensorrt="11.4.1",
    python="3.12",
    source=f"Migrating TensorRT from 10.x to 11.x on Jetson, {_MIGRATION}/"
    "tensorrt-10x-to-11x-jetson.html; the Linux SBSA package",
)
# Jetson Linux (L4T) and the JetPack that came with it, developer.nvidia.com/embedded/
# jetpack-archive; 39.2.2 follows the numbers of the two before it, no document that names it was
# found.
JETPACK_OF_L4T: Mapping[str, str] = {
    "32.6.1": "4.6",
    **{f"32.7.{patch}": f"4.6.{patch}" for patch in range(1, 7)},
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.4": "5.1.6",
    "35.6": "5.1.5",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}

# -- boards ---------------------------------------------------------------------------------------

_MATRIX = "docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-{}/support-matrix"
_M82 = f"TensorRT 8.2.5 support matrix, hardware and precision: no INT8; {_MATRIX.format('825')}"
_M85 = f"TensorRT 8.5.3 support matrix, hardware and precision; {_MATRIX.format('853')}"
_M10 = f"TensorRT 10.1.0 support matrix, hardware and precision; {_MATRIX.format('1010')}"
_M13 = "TensorRT 10.13 support matrix, docs.nvidia.com/deeplearning/tensorrt/10.13.3"
_HALF: tuple[Precision, ...] = ("fp32", "fp16")
_ORIN = (_JP60, _JP61, _JP62, _JP72, _JP722)
_UNNAMED = (
    "the document of TensorRT 11.4.1 names Jetson AGX Orin and Jetson Thor; this module has the "
    "GPU of the former and is not named"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A board, the pattern of its device tree's model in small letters, and its releases.

    ``notes``: what holds for one of its releases alone, by the release's name.
    """

    board: Board
    model: str
    releases: tuple[SoftwareRelease, ...]
    notes: Mapping[str, str]


def _jetson(
    name: str,
    title: str,
    *,
    model: str,
    sm: str,
    dla: int,
    memory_gib: tuple[int, ...],
    matrix: str,
    releases: tuple[SoftwareRelease, ...],
    precisions: tuple[Precision, ...] = PRECISIONS,
    detail: str = "",
    unnamed: str = "",
) -> _Row:
    """Return the row of a module.

    ``matrix``: the document of its precisions; ``detail``: what its source says beside the
    numbers; ``unnamed``: a release whose document does not name this module.
    """
    source = f"{title} module, developer.nvidia.com/embedded/jetson-modules"
    board = Board(
        name=name,
        title=title,
        sm=sm,
        dla=dla,
        memory_gib=memory_gib,
        precisions=precisions,
        source=source + (f"; {detail}" if detail else ""),
        sources=(("sm", "developer.nvidia.com/cuda-gpus"), ("precisions", matrix)),
    )
    return _Row(board, model, releases, {unnamed: _UNNAMED} if unnamed else {})


# From the oldest on. The first row whose ``model`` lies in a device tree's is the board: "NVIDIA
# Jetson Orin NX Engineering Reference Developer Kit", "Jetson-AGX" (AGX Xavier with JetPack 4),
# "quill" (TX2).
_JETSONS = (
    _jetson(
        "nano",
        "Jetson Nano",
        model=r"jetson[ -]nano",
        sm="5.3",
        dla=0,
        memory_gib=(2, 4),
        precisions=_HALF,
        matrix=_M82,
        releases=(_JP46,),
    ),
    _jetson(
        "tx2",
        "Jetson TX2",
        model=r"tx2|quill",
        sm="6.2",
        dla=0,
        memory_gib=(4, 8),
        precisions=_HALF,
        matrix=_M82,
        releases=(_JP46,),
    ),
    _jetson(
        "xavier-nx",
        "Jetson Xavier NX",
        model=r"xavier nx",
        sm="7.2",
        dla=2,
        memory_gib=(8, 16),
        matrix=_M85,
        releases=(_JP51,),
    ),
    _jetson(
        "xavier-agx",
        "Jetson AGX Xavier",
        model=r"agx xavier|jetson-agx(?! orin| thor)|jetson-xavier",
        sm="7.2",
        dla=2,
        memory_gib=(16, 32, 64),
        matrix=_M85,
        releases=(_JP51,),
    ),
    _jetson(
        "orin-nano",
        "Jetson Orin Nano",
        model=r"orin nano",
        sm="8.7",
        dla=0,
        memory_gib=(4, 8),
        matrix=_M10,
        releases=_ORIN,
        unnamed=SBSA_RELEASE,
    ),
    _jetson(
        "orin-nx",
        "Jetson Orin NX",
        model=r"orin nx",
        sm="8.7",
        dla=2,
        memory_gib=(8, 16),
        matrix=_M10,
        releases=_ORIN,
        detail="the module of 8 GB has one DLA core",
        unnamed=SBSA_RELEASE,
    ),
    _jetson(
        "orin-agx",
        "Jetson AGX Orin",
        # Behind the other Orins, whose names "jetson orin" begins as well.
        model=r"agx orin|jetson orin",
        sm="8.7",
        dla=2,
        memory_gib=(32, 64),
        matrix=_M10,
        releases=_ORIN,
    ),
    _jetson(
        "thor",
        "Jetson Thor",
        model=r"thor",
        sm="11.0",
        dla=0,
        memory_gib=(64, 128),
        matrix=_M13,
        releases=(_JP70, _JP71, _JP72, _JP722),
    ),
)
# By board, in the order in which they are tried.
MODELS: tuple[tuple[str, Board], ...] = tuple((row.model, row.board) for row in _JETSONS)

# -- cards in a PC --------------------------------------------------------------------------------

_RTX_MATRIX = "docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1"
_CARD = Board(
    name=_DESKTOP,
    title="NVIDIA card in a PC",
    sm="7.5 or later",
    dla=0,
    memory_gib=(),
    precisions=PRECISIONS,
    source="the card says the rest; TensorRT 10.15.1 support matrix, docs.nvidia.com/"
    "deeplearning/tensorrt/latest/getting-started/support-matrix-10/10.15.1.html",
)
_RTX_CARD = Board(
    name=_DESKTOP,
    title="NVIDIA RTX card in a PC",
    sm="7.5, 8.6, 8.9, 12.x",
    dla=0,
    memory_gib=(),
    precisions=PRECISIONS,
    source=f"TensorRT for RTX 1.5 support matrix, {_RTX_MATRIX}/1.5.html",
    sources=(
        (
            "precisions",
            "the same; INT8 is listed there for weights of matrix products, activations only "
            "in Working with Quantized Types of the same documents",
        ),
    ),
)
_WHEELS = "pypi.nvidia.com and README.md of NVIDIA/TensorRT, release/"


def _package(name: str, tensorrt: str, cuda: str, source: str) -> SoftwareRelease:
    """Return the row of a Python package on a PC."""
    return _release(name, tensorrt=tensorrt, cuda=cuda, python="3.10", source=source)


_CARDS = (
    (_CARD, _package("trt10.3", "10.3", "12.5", _WHEELS + "10.3")),
    (_CARD, _package("trt10.13", "10.13", "12.9", _WHEELS + "10.13")),
    (_CARD, _package("trt10.16", "10.16", "13.2", _WHEELS + "10.16")),
    (_CARD, _package("trt11.4", "11.4", "13.x", "pypi.org/project/tensorrt")),
    (_RTX_CARD, _package("rtx1.7", "1.7", "13.x", "pypi.org/project/tensorrt-rtx")),
)


def _targets() -> Iterator[Target]:
    """Yield every target, boards from the oldest on."""
    for row in _JETSONS:
        for release in row.releases:
            yield Target(row.board, release, row.notes.get(release.name, ""))
    for board, release in _CARDS:
        yield Target(board, release)


TARGETS: Mapping[str, Target] = {target.name: target for target in _targets()}


def find(name: str) -> Target:
    """Return the target ``name``. Raises UnknownNameError, which names the near ones."""
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS, fix="da3 doctor --targets lists them")
    return TARGETS[name]
