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
from toolchain.bundle.linkage import FLAVOURS, STAGED, kit_linkage
from toolchain.core.errors import BundleError, UsageError
from toolchain.core.words import Precision
from toolchain.device.boards.target import Target
from toolchain.device.engine.kit import Kit
from toolchain.export.emit.kits import (
    Source,
    State,
    existing,
    kept_ranges,
    refuse_others,
    stale,
    write_kits,
)
from toolchain.export.emit.models import Wish
from toolchain.export.prepare import Domain, Prepared, prepare


@dataclass(frozen=True, slots=True)
class Order:
    """A kit that an export shall make too: for which target, in which precision and flavours.

    ``recalibrate``: widen the int8 ranges of a kit that is there, where this domain needs it.
    """

    target: Target
    precision: Precision
    flavours: tuple[str, ...]
    recalibrate: bool = False

    def require(self) -> None:
        """Refuse what can be known from the order alone.

        Raises PrecisionError for a precision that the board lacks, UsageError for segments without
        the whole network where only a script builds: nothing there could run them.
        """
        self.target.require(self.precision)
        if self.recalibrate and self.precision != "int8":
            raise UsageError(
                f"expected --recalibrate with int8 alone, got it with {self.precision}",
                fix="leave it out, or export int8 in a run of its own",
            )
        linkages = map(kit_linkage, self.flavours)
        shared = {one for one in linkages if not one.folds_domain}
        if self.target.release.scripted and shared == {STAGED}:
            raise UsageError(
                f"{self.target.name}: expected the flavour swap beside staged, got staged without "
                "it: its board builds by a script, and nothing there runs segments",
                fix="add --flavour swap",
            )

    @property
    def title(self) -> str:
        """What progress calls it."""
        return f"{self.target.name} {self.precision}"


@dataclass(frozen=True, slots=True)
class KitReport:
    """A kit and what became of it; ``unopened``: gates that no sample opened.

    One that was ``replaced`` leaves engines behind that no longer belong to it; ``stale``: bundles
    beside it whose figures were measured on what it was.
    """

    kit: Kit
    state: State
    plan: Plan
    unopened: tuple[str, ...]
    stale: tuple[str, ...]


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
        self, domain: Domain, source: Source, step: Callable[[str], AbstractContextManager[None]]
    ) -> tuple[Plan, ...]:
        """Make and measure the models of every order, each as a ``step``.

        ``source`` as far as it is known yet. Returns what the bundle tells of them. Raises as
        :func:`toolchain.export.prepare.prepare`, and ExistsError for a kit that is there and
        another.
        """
        for order in self._orders:
            with step(order.title):
                made = self._prepared(order, domain)
                if not self._replaces(order):
                    refuse_others(made.emitted, source, self._folder)
                self._made.append(made)
        return tuple(item.plan for item in self._made)

    def write(self, source: Source) -> tuple[KitReport, ...]:
        """Write the kits; raises as :func:`toolchain.export.emit.kits.write_kits`."""
        found = []
        for order, made in zip(self._orders, self._made, strict=True):
            replaces = self._replaces(order)
            for kit, state in write_kits(made.emitted, source, self._folder, overwrite=replaces):
                changed = state == "replaced"
                old = stale(self._folder, kit, source.manifest.domain) if changed else ()
                found.append(KitReport(kit, state, made.plan, made.unopened, old))
        return tuple(found)

    def _prepared(self, order: Order, domain: Domain) -> Prepared:
        there = self._there(order)
        # Engines and scripts in the field use what a kit has: none is dropped from it.
        held = {item.flavour for item in there.manifest.flavours} if there else set()
        flavours = tuple(name for name in FLAVOURS if name in held | {*order.flavours})
        anew = self._overwrite and order.recalibrate
        ranges = {} if there is None or anew else kept_ranges(there)
        wish = Wish(order.target, order.precision, flavours, self._rates, ranges)
        return prepare(domain, wish, recalibrate=order.recalibrate)

    def _there(self, order: Order) -> Kit | None:
        try:
            return existing(self._folder, self._backbone, order.target.name, order.precision)
        except BundleError:
            if not self._overwrite:
                raise
            return None

    def _replaces(self, order: Order) -> bool:
        return self._overwrite or (order.recalibrate and order.precision == "int8")
