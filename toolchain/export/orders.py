"""The kits of one export: prepared before its bundle is packed, written after it.

Rules of this file: it keeps the order of steps. The bundle says what a precision costs, so models
are made and measured before it is packed. A static kit names its release, so kits are written last.
A kit that does not fit what is there is refused before anything is written. A kit that the domain
or the target does not bear is left out, with its reason; the bundle is whole without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.bundle import BackboneManifest, PrecisionCost
from toolchain.bundle.linkage import FLAVOURS
from toolchain.core.errors import BundleError, ModelRefusedError, PrecisionError
from toolchain.core.timing import Notify
from toolchain.device.engine.kit import Kit
from toolchain.export.emit.kits import (
    KitState,
    existing,
    kept_ranges,
    refuse_others,
    stale,
    write_kits,
)
from toolchain.export.emit.models import KitOrder
from toolchain.export.prepare import KitDomain, PreparedKit, prepare


@dataclass(frozen=True, slots=True)
class KitReport:
    """A kit and what became of it.

    ``unopened``: gates that no sample opened. If the kit was replaced, engines that were built from
    the old one no longer belong to it. ``stale``: bundles beside it whose figures were measured on
    the old one. ``judged_by``: the pictures that ``plan`` was measured on, ``validation`` or
    ``training``.
    """

    kit: Kit
    state: KitState
    plan: PrecisionCost
    judged_by: str
    unopened: tuple[str, ...]
    stale: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RefusedKit:
    """An order that was not carried out, and why.

    Its precision costs too much, or the target's parser would not read the models.
    """

    order: KitOrder
    reason: PrecisionError | ModelRefusedError


class Orders:
    """Orders of one domain for kits in ``folder``; ``rates`` as calibrated, per site.

    ``bound``: the largest error of a logit that the user allows a kit of lower precision.
    """

    def __init__(
        self,
        orders: Sequence[KitOrder],
        rates: Mapping[str, float],
        folder: Path,
        *,
        overwrite: bool,
        bound: float | None = None,
    ) -> None:
        self._orders, self._rates, self._folder = tuple(orders), rates, folder
        self._overwrite, self._bound = overwrite, bound
        self._prepared: list[PreparedKit] = []
        self._refused: list[RefusedKit] = []

    @property
    def refused(self) -> tuple[RefusedKit, ...]:
        """The orders that :meth:`prepare` left out."""
        return tuple(self._refused)

    def prepare(
        self,
        domain: KitDomain,
        step: Callable[[str], AbstractContextManager[None]],
        notify: Notify = lambda _: None,
    ) -> tuple[PrecisionCost, ...]:
        """Make and measure the models of every order, each as a ``step``; ``notify`` as there.

        Returns what the bundle says of them. An order that is refused for what it costs, or by the
        target's parser, is noted in :attr:`refused`. Raises ExistsError if another kit is there,
        and BundleError for a damaged one.
        """
        for order in self._orders:
            with step(order.title):
                try:
                    prepared = self._prepare(order, domain, notify)
                except (PrecisionError, ModelRefusedError) as err:
                    self._refused.append(RefusedKit(order, err))
                    continue
                if not self._replaces(order):
                    refuse_others(prepared.models, domain.source, self._folder)
                self._prepared.append(prepared)
        return tuple(prepared.plan for prepared in self._prepared)

    def write(self, release: str) -> tuple[KitReport, ...]:
        """Write the kits; raises as :func:`toolchain.export.emit.kits.write_kits`.

        ``release``: digest of the domain's manifest, for the kits that are its own.
        """
        reports = []
        for prepared in self._prepared:
            source, replaces = prepared.source, self._replaces(prepared.models.order)
            kits = write_kits(
                prepared.models, source, self._folder, release=release, overwrite=replaces
            )
            for kit, state in kits:
                replaced = state == "replaced"
                old = stale(self._folder, kit, source.manifest.domain) if replaced else ()
                reports.append(
                    KitReport(
                        kit=kit,
                        state=state,
                        plan=prepared.plan,
                        judged_by=prepared.judged_by,
                        unopened=prepared.unopened,
                        stale=old,
                    )
                )
        return tuple(reports)

    def _prepare(self, order: KitOrder, domain: KitDomain, notify: Notify) -> PreparedKit:
        there = self._there(order, domain.source.backbone)
        # Engines and scripts in the field use what a kit has: none is dropped from it.
        present = {item.flavour for item in there.manifest.flavours} if there else set()
        flavours = tuple(name for name in FLAVOURS if name in present | {*order.flavours})
        anew = self._overwrite and order.recalibrate
        ranges = {} if there is None or anew else kept_ranges(there)
        order = replace(order, flavours=flavours)
        return prepare(
            domain, order, rates=self._rates, ranges=ranges, bound=self._bound, notify=notify
        )

    def _there(self, order: KitOrder, backbone: BackboneManifest) -> Kit | None:
        try:
            return existing(self._folder, backbone, order.target.name, order.precision)
        except BundleError:
            if not self._overwrite:
                raise
            return None

    def _replaces(self, order: KitOrder) -> bool:
        return self._overwrite or (order.recalibrate and order.precision == "int8")
