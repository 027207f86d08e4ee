"""Whether what a device tries is well: a command, an address, or the self-tests once more.

Rules of this file: it looks and tells; it changes nothing. A look that takes too long is a bad one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import urllib3

from toolchain.core.errors import Da3Error
from toolchain.device.agent.policy import Health

LOOK_S = 30.0
"""Seconds that one look may take."""
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look found; ``reason``: why it is not well, for people, empty where it is."""

    reason: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing was wrong."""
        return not self.reason


def look(health: Health, selftest: Callable[[], object], *, limit_s: float = LOOK_S) -> Looked:
    """Look once: at the command and the address of the policy, or let ``selftest`` run.

    ``selftest`` raises an error of ours where a domain does not answer as its golden data say.
    """
    reasons = []
    if health.command:
        reasons.append(_command(health.command, limit_s))
    if health.url is not None:
        reasons.append(_address(health.url, limit_s))
    if not reasons:
        reasons.append(_selftest(selftest))
    return Looked(next((reason for reason in reasons if reason), ""))


def _command(words: tuple[str, ...], limit_s: float) -> str:
    try:
        # The words are the operator's own, from the policy; no shell reads them.
        ended = subprocess.run(
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]}: took longer than {limit_s:g} s"
    except OSError as err:
        return f"{words[0]}: {err.strerror}"
    if ended.returncode == 0:
        return ""
    told = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"{words[0]}: ended with {ended.returncode}: {''.join(told)[:_SHOWN]}"


def _address(url: str, limit_s: float) -> str:
    try:
        with urllib3.PoolManager() as pool:
            answer = pool.request("GET", url, timeout=limit_s, retries=False, preload_content=False)
            answer.close()
    except urllib3.exceptions.HTTPError as err:
        return f"{url}: {str(err)[:_SHOWN]}"
    return "" if 200 <= answer.status < 300 else f"{url}: answered {answer.status}"


def _selftest(selftest: Callable[[], object]) -> str:
    try:
        selftest()
    except Da3Error as err:
        return err.message[:_SHOWN]
    return ""
