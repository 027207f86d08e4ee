"""``python -m tests.support.killed FOLDER``: runs the script of a store to be killed in the middle.

Rules of this file: one process loads everything, and forks for each run; a run stops itself until
strace has hold of it. Commands come line by line: the folder in which to run. The answer is the
run's process; its end is told as a second line.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

CALLS = ("pwrite64", "fsync", "rename", "symlink", "mkdir", "unlink", "rmdir", "ftruncate")
"""Names of system calls that change a disk; a file is made just before its first write."""


def serve() -> None:
    """Answer commands until there are no more."""
    from tests.support import store_script

    store_script.warm()
    for line in sys.stdin:
        folder = Path(line.strip())
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            with (folder / "acknowledged").open("a", buffering=1) as said:
                for step in store_script.steps(folder / "store"):
                    said.write(f"{step}\n")
            os._exit(0)
        # Before it has stopped, nobody can let it go on.
        os.waitpid(child, os.WUNTRACED)
        _say(child)
        _, status = os.waitpid(child, 0)
        _say(os.waitstatus_to_exitcode(status))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


class Killer:
    """The process that runs the script, and strace, which kills it."""

    def __init__(self) -> None:
        self._server = Popen(
            [sys.executable, "-m", "tests.support.killed"], stdin=PIPE, stdout=PIPE, text=True
        )

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(20)

    def run(self, folder: Path, call: str, when: int) -> bool:
        """Run the script in ``folder``; say whether the ``when``-th call of a name killed it."""
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{folder}\n")
        stdin.flush()
        child = int(stdout.readline())
        option = f"inject={call}:signal=KILL:when={when}"
        command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", option, "-p", str(child)]
        tracer = Popen([*command, "-o", "/dev/null"], stderr=DEVNULL)
        try:
            _wait_until_traced(child)
            os.kill(child, signal.SIGCONT)
            status = int(stdout.readline())
        finally:
            tracer.wait(60)
        assert status in (0, -signal.SIGKILL), status
        return status != 0


def _wait_until_traced(process: int) -> None:
    for _ in range(2000):
        text = Path(f"/proc/{process}/status").read_text()
        if "TracerPid:\t0\n" not in text:
            return
        time.sleep(0.005)
    raise AssertionError("strace did not attach")


def lacking() -> str:
    """Why nothing can be killed here; nothing where it can."""
    return "" if shutil.which("strace") else "strace is not installed"


if __name__ == "__main__":
    serve()
