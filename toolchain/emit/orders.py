"""The kits of one export: prepared before its bundle is packed, written after it.

Rules of this file: it keeps the order of things. What a precision costs stands in the bundle, so
models are made and measured first; a static kit names its release, so kits are written last; and a
kit that would be refused is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from toolchain.bundle import BackboneManifest, Plan
from toolchain.emit.kit import Wish
from toolchain.emit.prepare import Domain, Prepared, prepare
from toolchain.emit.writing import Source, State, kept_ranges, refuse_others, write_kits
from toolchain.engine.kit import Kit
from toolchain.engine.target import Precision, Target


@dataclass(frozen=True, slots=True)
class Order:
    """A kit that an export shall make too: for which target, in which precision and flavours.

    ``recalibrate``: widen the int8 ranges of a kit that is there, where this domain needs it.
    """

    target: Target
    precision: Precision
    flavours: tuple[str, ...]
    recalibrate: bool = False

    @property
    def title(self) -> str:
        """What progress calls it."""
        return f"{self.target.name} {self.precision}"


@dataclass(frozen=True, slots=True)
class KitReport:
    """A kit and what became of it; ``unopened``: gates that no sample opened.

    One that was ``replaced`` leaves engines behind that no longer belong to it, and figures in the
    bundles of other domains that were measured on what it was.
    """

    kit: Kit
    state: State
    plan: Plan
    unopened: tuple[str, ...]


class Orders:
    """Orders of one domain for kits in ``folder``; ``rates`` as calibrated, per site."""

    def __init__(
        self,
        orders: Sequence[Order],
        backbone: BackboneManifest,
        rates: Mapping[str, float],
        folder: Path,
        *,
        overwrite: bool,
    ) -> None:
        self._orders = tuple(orders)
        self._backbone, self._rates, self._folder = backbone, rates, folder
        self._overwrite = overwrite
        self._made: list[Prepared] = []

    def prepare(
        self, domain: Domain, step: Callable[[str], AbstractContextManager[None]]
    ) -> tuple[Plan, ...]:
        """Make and measure the models of every order, each as a ``step``.

        Returns what the bundle tells of them. Raises as :func:`toolchain.emit.prepare.prepare`, and
        ExistsError for a kit that is there and another.
        """
        for order in self._orders:
            with step(order.title):
                self._made.append(self._prepared(order, domain))
        return tuple(item.plan for item in self._made)

    def write(self, source: Source) -> tuple[KitReport, ...]:
        """Write the kits; raises as :func:`toolchain.emit.writing.write_kits`."""
        return tuple(
            KitReport(kit, state, made.plan, made.unopened)
            for order, made in zip(self._orders, self._made, strict=True)
            for kit, state in write_kits(
                made.emitted, source, self._folder, overwrite=self._replaces(order)
            )
        )

    def _prepared(self, order: Order, domain: Domain) -> Prepared:
        ranges = kept_ranges(self._folder, self._backbone, order.target.name, order.precision)
        wish = Wish(order.target, order.precision, order.flavours, self._rates, ranges)
        made = prepare(domain, wish, recalibrate=order.recalibrate)
        if not self._replaces(order):
            refuse_others(made.emitted, self._backbone, domain.name, self._folder)
        return made

    def _replaces(self, order: Order) -> bool:
        return self._overwrite or order.recalibrate
