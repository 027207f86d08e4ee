"""Which target a machine is: its board from the device tree, its release from TensorRT.

Rules of this file: pure functions of the values of :mod:`toolchain.device.boards.machine`. A
TensorRT between two rows belongs to the older row, whose limits hold for it too. A TensorRT below
every row of its board belongs to none.
"""

from __future__ import annotations

import re

from toolchain.device.boards.machine import Machine
from toolchain.device.boards.target import MODELS, TARGETS, Board, Target


def board_of(model: str) -> Board | None:
    """Return the board that a device tree's model names, None for one that is not in the table."""
    matching = (board for pattern, board in MODELS if re.search(pattern, model.lower()))
    return next(matching, None)


def here(machine: Machine) -> Target | None:
    """Return the target that this machine is, None for a machine that is none.

    A PC with an NVIDIA card is a ``desktop``. The installed package says which one; ``tensorrt``
    counts before ``tensorrt_rtx``.
    """
    if machine.board is not None:
        board = board_of(machine.board)
        return _on_board(machine, board) if board is not None else None
    if not machine.gpus:
        return None
    cards = [target for target in TARGETS.values() if target.board.is_card]
    for module, is_rtx in (("tensorrt", False), ("tensorrt_rtx", True)):
        package = machine.package(module)
        if package is not None and package.version is not None:
            rows = [target for target in cards if target.release.is_rtx == is_rtx]
            return _newest(_not_above(rows, package.version), None)
    return None


def tensorrt_of(machine: Machine) -> str | None:
    """Return the version of TensorRT: that of the module, else that of the library."""
    module = machine.package("tensorrt")
    return (module.version if module else None) or machine.tensorrt_library


def targets_of(board: str) -> list[Target]:
    """Return the targets of a board, the oldest release first."""
    return [target for target in TARGETS.values() if target.board.name == board]


def _on_board(machine: Machine, board: Board) -> Target | None:
    rows, version = targets_of(board.name), tensorrt_of(machine)
    if version is not None:
        return _newest(_not_above(rows, version), machine.jetpack)
    if machine.jetpack is None:
        return None
    # TensorRT is not installed yet, so take the one that this JetPack carries.
    named = [row for row in rows if _number(row.release.name) <= _number(machine.jetpack)]
    # Another major JetPack carries another TensorRT, so its rows say nothing of this one.
    major = _number(machine.jetpack)[0]
    return _newest([row for row in named if _number(row.release.name)[0] == major], machine.jetpack)


def _not_above(rows: list[Target], version: str) -> list[Target]:
    """Return the rows of the newest TensorRT that is not above ``version``, first two numbers."""
    numbers = {_number(row.release.tensorrt)[:2] for row in rows}
    fitting = [number for number in numbers if number <= _number(version)[:2]]
    return [row for row in rows if fitting and _number(row.release.tensorrt)[:2] == max(fitting)]


def _newest(rows: list[Target], jetpack: str | None) -> Target | None:
    """Return the row of the newest JetPack; of those not above ``jetpack`` if there are any."""
    fitting = [row for row in rows if jetpack and _number(row.release.name) <= _number(jetpack)]
    return next(reversed(fitting or rows), None)


def _number(version: str) -> tuple[int, ...]:
    """Return the first four numbers in a version or in a release's name, at least two of them."""
    numbers = [int(part) for part in re.findall(r"[0-9]{1,9}", version)[:4]]
    return tuple(numbers) if len(numbers) > 1 else (*numbers, 0, 0)[:2]
