"""The agent: it looks, plans and acts, again and again, until the device is as its policy says.

Rules of this file: the loop waits and counts failures; what to do is the plan's, how is the
operations'. An error ends a round and never the loop. A round that failed is tried again later and
later; rounds of many devices do not fall together. Each thing that happened is reported once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from toolchain.core.errors import Da3Error, LockedError, PolicyError, TrustError
from toolchain.core.words import Notes
from toolchain.device.agent.operations import Device, finish_trial, look_at_repository, take
from toolchain.device.agent.plan import Waiting, plan
from toolchain.device.agent.policy import Policy, opens_in, read_policy
from toolchain.device.agent.power import SUPPLIES, on_battery
from toolchain.device.store.store import Writer

_JITTER = 0.1
_FIRST_RETRY_S = 10.0
# Another one works in the store; it is done sooner than a network is back.
_BUSY_S = 2.0


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
    """Keeps the device of a store as its policy says; ``device`` is how to work on it."""

    def __init__(self, device: Device, *, supplies: Path = SUPPLIES) -> None:
        self._device = device
        self._supplies = supplies
        self._failures = 0

    def start(self) -> None:
        """Put the store right after a start of the device. Raises StorageError, LockedError."""
        with self._device.store.writing() as writer:
            recovery = writer.recover()
        for event in recovery.events:
            self._device.told(f"at the start: {event.what.lower()} {event.about.get('unit', '')}")

    def run(self, stop: Callable[[], bool]) -> None:
        """Go round until ``stop`` says so. ``wait`` of the device is to return when it does."""
        while not stop():
            self._device.wait(self.round_s())

    def round_s(self) -> float:
        """Go round once; return after how many seconds to go round again."""
        try:
            self._device = replace(self._device, policy=self._policy())
            done = self.once()
        except LockedError as err:
            self._device.told(err.message)
            return _BUSY_S
        except Da3Error as err:
            self._failures += 1
            self._tell(err)
            # Doubled up to the usual time, so that a repository that comes back is not stormed.
            pause = min(self._device.policy.poll_s, _FIRST_RETRY_S * 2 ** min(self._failures, 20))
            return _spread(pause)
        self._failures = 0
        poll_s = self._device.policy.poll_s
        return min(_spread(poll_s), done.postponed_s or poll_s)

    def once(self) -> Round:
        """Go round once: end a trial that is open, look at the repository, and act.

        Raises what looking raises; a step that fails is told in the round.
        """
        device = self._device
        finish_trial(device)
        if (left := self._postponed()) > timedelta():
            return Round(postponed_s=left.total_seconds())
        if device.policy.repository is None:
            return Round()
        with device.store.writing() as writer:
            trusted = look_at_repository(device, writer)
            todo = plan(writer.state, trusted.releases, device.policy)
        changed: list[str] = []
        failed: list[Waiting] = []
        for step in todo.steps:
            units = [str(release.unit) for release in step.releases]
            try:
                if take(device, step, trusted.releases):
                    changed += units
                else:
                    failed.append(Waiting(units[0], "it was rolled back; see the history"))
            except LockedError:
                raise
            except Da3Error as err:
                failed.append(Waiting(units[0], err.message))
                device.told(f"{units[0]}: {err.message}")
                self._report({"what": "not installed", "units": units[0], "reason": err.message})
        if changed:
            with device.store.writing() as writer:
                writer.gc()
        refused = tuple(Waiting(unit, err.message) for unit, err in trusted.refused.items())
        waiting = (*todo.waiting, *refused)
        return Round(tuple(changed), tuple(failed), waiting, trusted.unchecked)

    # -- inside ------------------------------------------------------------------------------------

    def _policy(self) -> Policy:
        """Return the policy as it is now; a faulty one leaves the last."""
        try:
            return read_policy(self._device.store.path)
        except PolicyError as err:
            self._device.told(f"{err.message}; the policy as it was counts")
            return self._device.policy

    def _postponed(self) -> timedelta:
        policy = self._device.policy
        if not policy.on_battery and on_battery(self._supplies):
            self._device.told("the device runs on its battery; nothing is changed")
            return timedelta(seconds=policy.poll_s)
        left = opens_in(policy.window, self._device.now())
        if left > timedelta():
            self._device.told(f"the maintenance window opens in {left}")
        return left

    def _tell(self, err: Da3Error) -> None:
        self._device.told(err.message)
        # A network that is not there is no news; a repository that lies is.
        if isinstance(err, TrustError):
            self._report({"what": "not trusted", "reason": err.message})

    def _report(self, about: Notes) -> None:
        """Keep a report, unless the same is kept already."""
        short = {name: str(value)[:300] for name, value in about.items()}
        with self._device.store.writing() as writer:
            _report_once(writer, short)


def _report_once(writer: Writer, about: Notes) -> None:
    if all(dict(report.about) != dict(about) for report in writer.state.reports):
        writer.report(about)


def _spread(seconds: float) -> float:
    """Return ``seconds``, give or take a tenth."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
