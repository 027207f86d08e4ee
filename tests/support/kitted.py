"""Kits of the exported toy domain, made once per run through the real export."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import shared
from tests.support.exported import Exported

if TYPE_CHECKING:
    from toolchain.device.engine.kit import Kit
    from toolchain.export.emit.models import KitOrder
    from toolchain.export.pipeline import ExportReport

ALL = ("swap", "staged", "static")
# One of each generation of parsers, and each precision; what each must do differently is in
# toolchain/device/boards/target.py.
ORDERS = {
    "orin fp16": ("orin-nano-jp6.2", "fp16", ALL),
    "orin int8": ("orin-nano-jp6.2", "int8", ("swap", "staged")),
    "thor fp32": ("thor-jp7.1", "fp32", ALL),
    "nano fp32": ("nano-jp4.6", "fp32", ("swap", "staged")),
    "xavier fp16": ("xavier-nx-jp5.1", "fp16", ("swap",)),
    "desktop int8": ("desktop-rtx1.7", "int8", ALL),
}


def orders() -> list[KitOrder]:
    from toolchain.device.boards.target import find
    from toolchain.export.emit.models import KitOrder

    return [
        KitOrder(find(target), precision, flavours)  # type: ignore[arg-type]
        for target, precision, flavours in ORDERS.values()
    ]


@dataclass(frozen=True)
class Kitted:
    """The toy exported for :data:`ORDERS` into ``folder``; nobody changes it."""

    exported: Exported
    folder: Path
    report: ExportReport

    @cached_property
    def kits(self) -> dict[str, Kit]:
        """By the key of ``ORDERS``; a domain's own static kit as ``<key> static``."""
        names = {(target, precision): key for key, (target, precision, _) in ORDERS.items()}
        kits = {}
        for item in self.report.kits:
            manifest = item.kit.manifest
            key = names[manifest.target, manifest.precision]
            own = manifest.flavours[0].flavour == "static"
            kits[f"{key} static" if own else key] = item.kit
        return kits


def kitted_once(exported: Exported) -> Kitted:
    """Return the kits, which the first worker makes."""
    folder = shared.FOLDER / "kits"

    def made() -> ExportReport:
        from toolchain.export.pipeline import export

        domain = exported.domain
        return export(
            domain.recipe,
            checkpoint=domain.checkpoint,
            dist=folder,
            cache=exported.cache,
            orders=orders(),
        )

    return Kitted(exported, folder, shared.value_once("kits.report", made))
