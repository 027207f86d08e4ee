"""The process that stays: it outlives every round and takes little."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support.fielded import SAMPLE, Fielded, ToyPublisher
from toolchain.device.agent import loop
from toolchain.device.agent.loop import Loop, round_words, start_words


class Waits(list[float]):
    """Waits without waiting, and says to end after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return sum(1 for one in self if one > 0) >= self.rounds


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def made(words: list[str], waits: Waits | None = None) -> tuple[Loop, list[str]]:
    told: list[str] = []
    wait = Waits(3) if waits is None else waits
    return Loop(python("pass"), words, wait, told.append), told


def test_it_keeps_a_device(field: Fielded, publisher: ToyPublisher) -> None:
    """The whole of it, in processes, as systemd starts it."""
    # The devices' clock is the system's here, so the site is published now.
    publisher.now = loop_now()
    publisher.publish()
    told: list[str] = []
    running = Loop(
        start_words(field.store.path), round_words(field.store.path), Waits(1), told.append
    )
    running.run()
    assert not told
    assert str(SAMPLE) in field.running()


def loop_now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(1)",
        "print('{')",
        "print('{\"next_s\": true}')",
        "print('{\"next_s\": -5}')",
        "import os; os.kill(os.getpid(), 9)",
        "print('[' * 100000)",
    ],
)
def test_a_round_that_fails_is_followed_by_others(program: str) -> None:
    running, told = made(python(program))
    assert 9 <= running.once() <= 11
    assert 18 <= running.once() <= 22
    assert running.failures == 2
    assert all("failed" in line for line in told)


def test_pauses_grow_to_an_hour_and_begin_anew_after_a_good_round() -> None:
    running, _ = made(python("raise SystemExit(1)"))
    running.failures = 30
    assert running.once() <= 1.1 * loop.LAST_RETRY_S
    running.words = python("print('{\"next_s\": 100}')")
    assert 90 <= running.once() <= 110
    assert running.failures == 0


def test_a_round_that_takes_too_much_memory_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEMORY_BYTES", 64 << 20)
    program = "import time; time.sleep(0.3); x = bytearray(1 << 28); print('{\"next_s\": 1}')"
    running, _ = made(python(program))
    running.once()
    assert running.failures == 1


def test_what_cannot_be_started_is_told() -> None:
    running, told = made(["/nowhere/python"])
    running.once()
    assert "cannot start /nowhere/python" in told[0]


def test_a_round_ends_when_the_loop_shall() -> None:
    waits = Waits(0)
    running, _ = made(python("import time; time.sleep(600)"), waits)
    running.once()
    assert running.failures == 1


def test_systemd_is_told_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        waits = Waits(3)
        running, _ = made(python("print('{\"next_s\": 10}')"), waits)
        running.run()
        listening.setblocking(False)
        words = []
        with pytest.raises(BlockingIOError):
            while True:
                words.append(listening.recv(100).decode())
    assert words[0] == "READY=1"
    assert words[-1] == "STOPPING=1"
    assert words.count("WATCHDOG=1") >= 3
    assert max(waits) <= 1


def test_it_takes_little_memory_at_rest() -> None:
    """What stays in memory between two rounds: less than 40 MB."""
    program = (
        "import sys; sys.argv[1:] = ['device', 'agent', '--help']\n"
        "from pathlib import Path\n"
        "from toolchain.cli import main\n"
        "import toolchain.device.agent.loop\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        # Not getrusage: after a fork it tells of the parent, too.
        "print(Path('/proc/self/status').read_text(), file=sys.stderr)"
    )
    ended = subprocess.run(python(program), capture_output=True, check=True, text=True)
    (peak,) = (line for line in ended.stderr.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) * 1024 < 40e6
