"""Run a part in a process of its own: ``python -m toolchain.bench.child PART``.

Rules of this file: the parent writes what to measure to stdin, as one JSON document. The child
writes one JSON object a line to stdout: ``told`` for progress, at last ``answer`` or ``error``. Its
stderr is the caller's. Only the parts named in ``PARTS`` can run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from toolchain.core.errors import Da3Error, RunError
from toolchain.core.timing import Notify

PARTS = ("domains", "swap", "memory", "load")


def run(
    part: str, request: Mapping[str, Any], *, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Return what ``<part>.in_child`` returns for ``request``, in a fresh interpreter.

    Raises RunError with the child's message if it fails.
    """
    command = [sys.executable, "-m", __name__, part]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin as pipe:
            pipe.write(json.dumps(dict(request)).encode())
        last: dict[str, Any] = {}
        for line in child.stdout:
            last = json.loads(line)
            if "told" in last:
                notify(last["told"])
    if "answer" in last:
        answer: dict[str, Any] = last["answer"]
        return answer
    message, fix = last.get("error", (f"it ended with code {child.returncode}", ""))
    raise RunError(f"bench, {part}: {message}", fix=fix or "measure fewer domains, or with --quick")


def main(part: str) -> None:
    """Be the child: read the document, run the part, say what it says."""
    if part not in PARTS:
        raise SystemExit(f"expected one of {', '.join(PARTS)}, got {part!r}")
    # What a library prints shall not come between: from here on it goes to stderr.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    in_child = import_module(f"toolchain.bench.{part}").in_child
    try:
        say(answer=in_child(json.load(sys.stdin), notify=lambda text: say(told=text)))
    except Da3Error as err:
        say(error=(err.message, err.fix))


if __name__ == "__main__":
    main(sys.argv[1])
