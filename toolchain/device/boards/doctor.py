"""What this machine can do of the toolchain, or a named target, and what the rest needs.

Rules of this file: it makes reports from values, a :class:`Machine` or a :class:`Target`. It
probes, runs and prints nothing. If something cannot be done, ``fix`` is a command or names a
document. The report is no proof: only building and running show that a device builds and runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolchain.core.errors import install_command
from toolchain.device.boards import install
from toolchain.device.boards.locate import board_of, here, targets_of, tensorrt_of
from toolchain.device.boards.machine import Machine
from toolchain.device.boards.target import Target

# What each act imports, and the extra that installs it.
_NEEDS = {
    "train": (("torch",), "export"),
    "export": (("torch", "onnx", "onnx_ir", "onnxscript"), "export"),
    "check": (("onnxruntime",), ""),
    "run on onnxruntime": (("onnxruntime",), ""),
}


@dataclass(frozen=True, slots=True)
class Ability:
    """One act of the toolchain and whether it can be done.

    ``detail``: with what, or what is missing; ``fix``: how to get that.
    """

    act: str
    able: bool
    detail: str
    fix: str


@dataclass(frozen=True, slots=True)
class TableFact:
    """One fact of the table with its source."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What a machine or a named target can do.

    ``machine`` is None for a named target. ``target`` is None for a machine that is no target;
    ``why_none`` then says why. ``differences``: what the toolchain does differently there.
    """

    machine: Machine | None
    target: str | None
    why_none: str
    abilities: tuple[Ability, ...]
    differences: tuple[str, ...]
    facts: tuple[TableFact, ...]


def examine(machine: Machine) -> DoctorReport:
    """Return what ``machine`` can do."""
    target = here(machine)
    return DoctorReport(
        machine,
        target.name if target else None,
        "" if target else _why_none(machine),
        tuple(_abilities_here(machine, target)),
        differences(target) if target else (),
        facts(target) if target else (),
    )


def describe(target: Target) -> DoctorReport:
    """Return what can be done on ``target``, from the table alone."""
    return DoctorReport(
        machine=None,
        target=target.name,
        why_none="",
        abilities=tuple(_abilities_there(target)),
        differences=differences(target),
        facts=facts(target),
    )


def facts(target: Target) -> tuple[TableFact, ...]:
    """Return what the table says of ``target``, each fact with its source."""
    board, release = target.board, target.release
    of_board, of_release = dict(board.sources), dict(release.sources)
    memory = ", ".join(f"{size}" for size in board.memory_gib) or "the card's"
    rows = [
        TableFact("board", board.title, board.source),
        TableFact("SM", board.sm, of_board.get("sm", board.source)),
        TableFact("memory, GiB", memory, board.source),
        TableFact("DLA cores", str(board.dla), board.source),
        TableFact(
            "precisions", ", ".join(board.precisions), of_board.get("precisions", board.source)
        ),
        TableFact("JetPack", release.jetpack or "none", release.source),
        TableFact("CUDA", release.cuda, release.source),
        TableFact("TensorRT", release.tensorrt, release.source),
        TableFact("Python", release.python, release.source),
        TableFact("ONNX opset, at most", str(release.opset), of_release["opset"]),
        TableFact("ONNX opset of its kits", str(release.kit_opset), of_release["kit_opset"]),
        TableFact("conditional boundaries", release.boundaries, of_release["boundaries"]),
        TableFact("strongly typed", _yes(release.typed), of_release["typed"]),
        TableFact("kernels as tensors", _yes(release.conv_slots), of_release["conv_slots"]),
        TableFact(
            *("layers held in fp32", _yes(release.layer_precisions)),
            source=of_release["layer_precisions"],
        ),
    ]
    return tuple(
        rows if not target.note else [*rows, TableFact("note", target.note, release.source)]
    )


def differences(target: Target) -> tuple[str, ...]:
    """Return what the toolchain does for ``target`` and not for every target."""
    return tuple(_differences(target))


def _differences(target: Target) -> Iterator[str]:
    release = target.release
    yield f"ONNX opset {release.kit_opset}, with the operators that its parser has"
    if release.boundaries == "repaired":
        yield (
            "its parser leaves out the boundaries of conditionals, so that closed gates would "
            "compute all the same: da3 build puts them in and counts them"
        )
    if release.boundaries == "missing":
        yield (
            "its parser finds no boundary of a conditional and trtexec can add none: closed gates "
            "compute all the same; only gates that never vary are saved, by --flavour static"
        )
    if not release.conv_slots:
        yield "convolutions of adaptors are written as MatMul: no slot feeds a convolution"
    if release.typed:
        yield "precision stands in the graph: casts for fp16, Q/DQ for int8"
    elif release.layer_precisions:
        yield "precision is asked for by builder flags; norms and gates are held in fp32"
    else:
        yield (
            "precision is asked for by builder flags, and its trtexec cannot hold layers in fp32: "
            "with fp16 TensorRT chooses the faster for each"
        )
    if "int8" not in target.board.precisions:
        yield "int8 is refused: its GPU does not compute in it"
    if release.scripted:
        yield f"built by trtexec from the kit's build.sh: its Python is {release.python}"
    if not target.board.is_card:
        yield "the engine is built on the board itself, nowhere else"


def _abilities_there(target: Target) -> Iterator[Ability]:
    """Yield what can be done on a named target."""
    release, is_card = target.release, target.board.is_card
    commands = {
        "train": "da3 train --domain NAME",
        "export": f"da3-export --domain NAME --target {target.name}",
    }
    for act, command in commands.items():
        if is_card:
            extra = _NEEDS[act][1]
            yield Ability(act, True, f"{install_command(extra)}; then {command}", "")
        else:
            yield Ability(act, False, "a workstation's task", f"on a workstation: {command}")
    if release.scripted:
        yield from _scripted(target)
        return
    yield Ability("check", True, f"{install_command()}; then da3 check NAME.da3b", "")
    yield Ability("run on onnxruntime", True, install_command(), "")
    yield Ability("build an engine", True, f"{install.module(target)}; then da3 build KIT", "")
    yield Ability("run an engine", True, "da3 run --backbone build/engines/FOLDER", "")
    yield Ability("build by script", False, "its kit has no script", "da3 build KIT")


def _scripted(target: Target) -> Iterator[Ability]:
    """Yield what a board can do whose Python the toolchain does not run on."""
    old = f"Python {target.release.python} of its JetPack is too old"
    newer = "a Python of 3.10 or later beside the system's"
    yield Ability("check", False, old, "on a workstation: da3 check dist/NAME.da3b")
    yield Ability("run on onnxruntime", False, old, f"{newer}, then {install_command()}")
    yield Ability("build an engine", False, old, "sh build.sh, in the folder of the kit")
    yield Ability(
        *("run an engine", False, old),
        fix="trtexec --loadEngine, or the C++ API of TensorRT: the plan is an ordinary one",
    )
    yield Ability("build by script", True, install.trtexec(target), "")


def _abilities_here(machine: Machine, target: Target | None) -> Iterator[Ability]:
    for act, (modules, extra) in _NEEDS.items():
        yield _packages(machine, act, modules, extra)
    missing, fix = _engine_needs(machine, target)
    trt = machine.package("tensorrt") or machine.package("tensorrt_rtx")
    have = f"{trt.module} {trt.version or 'of unknown version'}" if trt else ""
    for act in ("build an engine", "run an engine"):
        detail = missing or f"{have} on {machine.gpus[0].name}"
        if act == "build an engine" and trt and trt.module == "tensorrt_rtx" and missing:
            detail += f"; {have} builds without a device, for checks only"
        yield Ability(act, not missing, detail, fix)
    if machine.trtexec is None:
        source = "build it from https://github.com/NVIDIA/TensorRT"
        how = install.trtexec(target) if target else source
        yield Ability("build by script", False, "no trtexec", how)
    else:
        gpu = "" if machine.gpus else _no_device(machine)
        yield Ability("build by script", not gpu, gpu or machine.trtexec, _device_fix(machine, gpu))


def _packages(machine: Machine, act: str, modules: Sequence[str], extra: str) -> Ability:
    missing = [module for module in modules if machine.package(module) is None]
    if not missing:
        packages = [machine.package(module) for module in modules]
        have = ", ".join(
            f"{one.module} {one.version or '?'}" for one in packages if one is not None
        )
        if act == "check" and not (machine.package("onnx") and machine.package("onnx_ir")):
            have += f"; to link anew as well, {install_command('check')}"
        return Ability(act, True, have, "")
    fix = install_command(extra)
    if machine.board is not None and "torch" in missing:
        fix = f"on a workstation; for PyTorch on a Jetson see {install.PYTORCH}"
    return Ability(act, False, f"no {', '.join(missing)}", fix)


def _engine_needs(machine: Machine, target: Target | None) -> tuple[str, str]:
    """Return what engines lack here and how to get it, both empty if nothing is."""
    module = machine.package("tensorrt") or machine.package("tensorrt_rtx")
    if machine.gpus and module is not None:
        return "", ""
    if not machine.gpus:
        fault = _no_device(machine)
        return fault, _device_fix(machine, fault)
    if machine.tensorrt_elsewhere:
        return "no TensorRT in this Python", install.environment(machine.tensorrt_elsewhere[0])
    if target is None:
        return "no TensorRT", install.RTX_PACKAGE if machine.board is None else _why_none(machine)
    return "no TensorRT", install.module(target)


def _no_device(machine: Machine) -> str:
    return machine.driver_fault or "no NVIDIA device"


def _device_fix(machine: Machine, fault: str) -> str:
    if not fault:
        return ""
    if machine.board is not None and board_of(machine.board) is not None:
        return "start the container with --runtime nvidia; outside of one, flash its JetPack again"
    return "a machine with an NVIDIA card and its driver: nvidia-smi must answer"


def _why_none(machine: Machine) -> str:
    """Return why a machine is no target of the table."""
    if machine.board is None:
        if machine.gpus:
            return (
                f"a PC whose TensorRT is not there, or older than every row; {install.RTX_PACKAGE}"
            )
        return "a machine without an NVIDIA device; name one: da3 doctor --target"
    board = board_of(machine.board)
    if board is None:
        return f"the board {machine.board!r} is not in the table: da3 doctor --targets"
    rows = ", ".join(
        f"{row.name} (TensorRT {row.release.tensorrt})" for row in targets_of(board.name)
    )
    version, jetpack = tensorrt_of(machine) or "unknown", machine.jetpack or "unknown"
    return f"expected one of {rows}, got TensorRT {version} with JetPack {jetpack}: update JetPack"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
