"""The process that stays: it starts a round, waits, and starts the next one.

Rules of this file: the standard library, and what the command line has loaded anyway, so that it
takes little memory while nothing happens. Each round is a process of its own with a limit on its
memory: whatever a file or a network does to it, the loop goes on. Rounds that fail come later and
later, and those of many devices do not fall together. systemd is told that the loop lives
(sd_notify(3), sd_watchdog_enabled(3)).
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.device.agent.process import command, started

MEMORY_BYTES = 1 << 30
"""Private memory of a round; a bundle of 512 MiB, the largest, is held once."""
FIRST_RETRY_S, LAST_RETRY_S = 10.0, 3600.0
_LOOK_S = 1.0
_JITTER = 0.1
_LIMIT_ANSWER_BYTES = 1 << 20


def round_words(store: Path) -> list[str]:
    """Return the command of one round on the store in the folder ``store``."""
    return command("device", "agent", "--round", "--json", "--store", str(store.absolute()))


def start_words(store: Path) -> list[str]:
    """Return the command that puts a store right after a start of the device."""
    return command("device", "recover", "--json", "--store", str(store.absolute()))


@dataclass
class Loop:
    """Goes round until ``wait`` says that it shall end.

    ``start``, ``words``: the commands of the first step and of a round. ``wait`` sleeps for so many
    seconds, and returns True at once when the loop shall end. ``told`` takes a few words.
    """

    start: Sequence[str]
    words: Sequence[str]
    wait: Callable[[float], bool]
    told: Callable[[str], None]
    failures: int = field(default=0, init=False)

    def run(self) -> None:
        """Put the store right, then go round again and again."""
        self._process(self.start)
        notify("READY=1")
        pause_s = 0.0
        while not self._rested(pause_s):
            pause_s = self.once()
        notify("STOPPING=1")

    def once(self) -> float:
        """Go round once; return after how many seconds to go round again."""
        answer = self._process(self.words)
        next_s = answer.get("next_s") if isinstance(answer, dict) else None
        if isinstance(next_s, int | float) and not isinstance(next_s, bool) and next_s > 0:
            self.failures = 0
            return spread(float(next_s))
        self.failures += 1
        pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(self.failures - 1, 20))
        self.told(f"the round failed; the next one comes in about {pause_s:.0f} s")
        return spread(pause_s)

    def _rested(self, seconds: float) -> bool:
        """Wait; return whether the loop shall end. The watchdog is fed meanwhile."""
        while seconds > 0:
            notify("WATCHDOG=1")
            # As long as half of what the watchdog allows.
            step_s = min(seconds, watchdog_s() / 2)
            if self.wait(step_s):
                return True
            seconds -= step_s
        return self.wait(0)

    def _process(self, words: Sequence[str]) -> Any:
        """Run a command and return what it answered, None for no answer; it ends with the loop."""
        try:
            process = started(words, MEMORY_BYTES)
        except OSError as err:
            self.told(f"cannot start {words[0]}: {err.strerror}")
            return None
        with process:
            answer = self._answer(process)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            return None

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        while True:
            try:
                return process.communicate(timeout=_LOOK_S)[0][:_LIMIT_ANSWER_BYTES]
            except subprocess.TimeoutExpired:
                notify("WATCHDOG=1")
                if self.wait(0):
                    # It lets go of the store, and what it fetched is kept.
                    process.terminate()


def spread(seconds: float) -> float:
    """Return ``seconds``, give or take a tenth."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)


def notify(word: str) -> None:
    """Tell systemd, where it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A name in the abstract namespace begins with a null, written as @.
    target = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(word.encode(), target)


def watchdog_s() -> float:
    """Return how long systemd waits for a word, a minute where it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) > 0 else 60.0
