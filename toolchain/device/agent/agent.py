"""A round of the agent: it looks, plans and acts once, so that the device is as its policy says.

Rules of this file: what to do is the plan's, how is the operations'. A step that fails keeps no
other from its turn. What a repository did that cannot be trusted is reported once, and ends the
round. :mod:`toolchain.device.agent.loop` goes round again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from toolchain.core.errors import Da3Error, LockedError, TrustError
from toolchain.core.words import Notes
from toolchain.device.agent.operations import Device, finish_trial, look_at_repository, take
from toolchain.device.agent.plan import Plan, Waiting, plan
from toolchain.device.agent.policy import opens_in
from toolchain.device.agent.power import SUPPLIES, on_battery
from toolchain.device.store.steps import reason_of
from toolchain.trust.client import Trusted


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did.

    ``changed``: units that run another release now. ``failed``: steps that did not come to stay,
    each with its reason. ``waiting``: units that stay as they are, and why. ``unchecked``: what
    could not be checked, for people. ``postponed_s``: how long nothing may be changed.
    """

    changed: tuple[str, ...] = ()
    failed: tuple[Waiting, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    unchecked: tuple[str, ...] = ()
    postponed_s: float = 0.0


class Agent:
    """Keeps a device as its policy says; ``supplies``: where the kernel tells of its power."""

    def __init__(self, device: Device, *, supplies: Path = SUPPLIES) -> None:
        self._device = device
        self._supplies = supplies

    def start(self) -> None:
        """Put the store right after a start of the device. Raises StorageError, LockedError."""
        with self._device.store.writing() as writer:
            recovery = writer.recover()
        for event in recovery.events:
            self._device.told(f"at the start: {event.what.lower()} {event.about.get('unit', '')}")

    def once(self) -> Round:
        """Go round once: end a trial that is open, look at the repository, and act.

        A step that fails is told in the round. Raises what looking raises, and LockedError while
        somebody else works in the store.
        """
        device = self._device
        finish_trial(device)
        if (left := self._postponed()) > timedelta():
            return Round(postponed_s=left.total_seconds())
        if device.policy.repository is None:
            return Round()
        trusted, todo = self._looked()
        changed: list[str] = []
        failed: list[Waiting] = []
        for step in todo.steps:
            units = [str(release.unit) for release in step.releases]
            try:
                if take(device, step, trusted.releases):
                    changed += units
                else:
                    failed.append(Waiting(units[-1], "it was not well, so the device went back"))
            except LockedError:
                raise
            except Da3Error as err:
                failed.append(Waiting(units[-1], err.message))
                device.told(f"{units[-1]}: {err.message}")
                self._report({"what": "not installed", "units": units[-1], "reason": err.message})
        if changed:
            with device.store.writing() as writer:
                writer.gc()
        # A unit that is refused has no release either; one reason is enough.
        others = (one for one in todo.waiting if one.unit not in trusted.refused)
        waiting = (*others, *self._refused(trusted))
        return Round(tuple(changed), tuple(failed), waiting, trusted.unchecked)

    # -- inside ------------------------------------------------------------------------------------

    def _looked(self) -> tuple[Trusted, Plan]:
        device = self._device
        try:
            with device.store.writing() as writer:
                trusted = look_at_repository(device, writer)
                return trusted, plan(writer.state, trusted.releases, device.policy)
        except TrustError as err:
            # A network that is not there is no news; a repository that lies is.
            self._report({"what": "not trusted", "reason": err.message})
            raise

    def _refused(self, trusted: Trusted) -> Iterator[Waiting]:
        """Yield the units whose metadata cannot be trusted; each is news, as a lie of all is."""
        for unit, err in trusted.refused.items():
            self._report({"what": "not trusted", "units": unit, "reason": err.message})
            yield Waiting(unit, err.message)

    def _postponed(self) -> timedelta:
        """Return how long nothing may be changed."""
        policy = self._device.policy
        if not policy.on_battery and on_battery(self._supplies):
            self._device.told("the device runs on its battery; nothing is changed")
            return timedelta(seconds=policy.poll_s)
        left = opens_in(policy.window, self._device.now())
        if left > timedelta():
            self._device.told(f"the maintenance window opens in {left}")
        return left

    def _report(self, about: Notes) -> None:
        """Keep a report, unless the same is kept already."""
        short = {name: reason_of(str(value)) for name, value in about.items()}
        with self._device.store.writing() as writer:
            if all(dict(report.about) != short for report in writer.state.reports):
                writer.report(short)
