"""What a device does next: releases that it may take in, steps to take out.

Rules of this file: pure functions of what runs, what the repository offers and what the policy
wants; no clock, no disk, no network. Domains on the backbone that runs are exchanged one by one, so
that one bad release holds no other back. A new backbone comes with a release of every domain that
runs, in one step, or waits. What waits is told with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolchain.core.errors import first_few
from toolchain.core.units import BackboneId, Unit, is_backbone
from toolchain.device.agent.policy import Policy
from toolchain.device.store.state import Held, State
from toolchain.trust.release import SignedRelease

Offers = Mapping[str, SignedRelease]
"""What the repository offers, by the text of the unit."""


@dataclass(frozen=True, slots=True)
class Step:
    """Releases to install and then to make current together, a backbone's first."""

    releases: tuple[SignedRelease, ...]

    @property
    def changes(self) -> dict[str, str]:
        """The digest of each release's manifest by its unit, as a store takes them."""
        return {str(one.unit): one.manifest.digest for one in self.releases}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A unit that stays as it is although it might not, and why, for people."""

    unit: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order, and what waits."""

    steps: tuple[Step, ...]
    waiting: tuple[Waiting, ...]


def plan(state: State, offers: Offers, policy: Policy) -> Plan:
    """Return how to bring the device to the newest releases that its policy wants."""
    names = _wanted(state, policy)
    waiting = list(_unavailable(state, offers, names))
    offered = {unit: offers[unit] for unit in names if _is_there(offers, unit)}
    new = {unit: one for unit, one in offered.items() if _is_new(state, one)}
    here = backbone_of(state)
    # The named backbone keeps the device where it is, or moves it there.
    steps = [Step((one,)) for one in new.values() if _fits(here, one) and _may_stay(here, policy)]
    elsewhere = [one for one in new.values() if not _fits(here, one)]
    move, reasons = _move(state, offers, offered, elsewhere, policy)
    # Domains that move come with their backbone; on the old one they need no step of their own.
    return Plan(tuple(steps if move is None else [move]), (*waiting, *reasons))


def backbone_of(state: State) -> BackboneId | None:
    """Return the backbone that runs, None before the first."""
    return next((held.fits for unit, held in state.running.items() if is_backbone(unit)), None)


def _wanted(state: State, policy: Policy) -> tuple[str, ...]:
    """Return the units of the domains that the policy wants, those that run where it names none."""
    if policy.domains is not None:
        return tuple(str(Unit("domains", name)) for name in policy.domains)
    return tuple(unit for unit in state.running if not is_backbone(unit))


def _is_there(offers: Offers, unit: str) -> bool:
    return unit in offers and not offers[unit].withdrawn


def _unavailable(state: State, offers: Offers, names: Sequence[str]) -> Iterator[Waiting]:
    for unit in names:
        if unit not in offers:
            yield Waiting(unit, "the repository has no release of it")
        elif offers[unit].withdrawn:
            runs = "; what is installed runs on" if unit in state.running else ""
            yield Waiting(unit, f"its publisher has withdrawn it{runs}")
        elif failed := failed_before(state, offers[unit]):
            yield Waiting(unit, f"release {failed} failed here; a later one will be tried")


def failed_before(state: State, release: SignedRelease) -> int | None:
    """Return the counter of a release that was rolled back here, if this is it, or its content."""
    for failed in state.failed:
        same = failed.counter == release.counter or failed.digest == release.manifest.digest
        if failed.unit == str(release.unit) and same:
            return failed.counter
    return None


def _is_new(state: State, release: SignedRelease) -> bool:
    runs: Held | None = state.running.get(str(release.unit))
    newer = runs is None or not runs.signed or release.counter > runs.counter
    return newer and failed_before(state, release) is None


def _may_stay(here: BackboneId | None, policy: Policy) -> bool:
    return policy.backbone is None or (here is not None and here.name == policy.backbone)


def _fits(here: BackboneId | None, release: SignedRelease) -> bool:
    needed = release.backbone
    return here is not None and needed is not None and here.digests == needed.digests


def _move(
    state: State,
    offers: Offers,
    offered: Offers,
    elsewhere: Sequence[SignedRelease],
    policy: Policy,
) -> tuple[Step | None, tuple[Waiting, ...]]:
    """Return the step to another backbone, if all that runs has a release for it."""
    reasons: list[Waiting] = []
    for first in elsewhere:
        assert first.backbone is not None
        name = first.backbone.name
        if policy.backbone not in (None, name):
            reasons.append(Waiting(str(first.unit), f"the policy keeps {policy.backbone}"))
            continue
        backbone = offers.get(str(Unit("backbones", name)))
        if backbone is None or backbone.backbone != first.backbone:
            reasons.append(Waiting(str(first.unit), f"the repository lacks its backbone {name}"))
            continue
        if failed := failed_before(state, backbone):
            reasons.append(Waiting(str(first.unit), f"its backbone's release {failed} failed here"))
            continue
        domains = [one for one in offered.values() if one.backbone == first.backbone]
        ready = {str(one.unit) for one in domains if failed_before(state, one) is None}
        left = [unit for unit in state.running if not is_backbone(unit) and unit not in ready]
        if left:
            told = first_few(left, 3)
            reasons.append(Waiting(str(first.unit), f"{name} waits for a release of {told} for it"))
            continue
        return Step((backbone, *(one for one in domains if str(one.unit) in ready))), ()
    return None, tuple(reasons)
