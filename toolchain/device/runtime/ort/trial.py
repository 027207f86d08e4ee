"""The trial: a graph that nobody ran here yet makes its first session in a process of its own.

Rules of this file: the process gets limits on memory, processor time and time. It opens the bundle
again, compares its digest, makes the session, and answers the golden cases. Only its verdict comes
back. So a graph that folds a huge constant, runs for ever or ends the process costs the one who
loads it an error, and nobody else anything. Its standard output goes nowhere, and what it writes
into the temporary folder is removed. It reaches no network, where the system lets a process leave.

The limits follow from the backbone, which belongs to whoever runs the device, and not from the
bundle, which may be anybody's. A bundle that asks for less time gets less. Memory is bounded by
what the device has to spare as well.

What it costs is one start of Python with onnxruntime, and the session twice; docs/runtime.md has
the figure. A process tries the same graph on the same weights once. Domains that were installed
were tried when they were installed.

The process starts from nothing (it is no fork: the caller may have threads), and it imports no
module of the working directory and not the caller's main module.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.bundle.limits import computing_seconds
from toolchain.core import errors
from toolchain.core.errors import BundleError, Da3Error, SelftestError, StorageError
from toolchain.core.files import room_fix
from toolchain.device.boards.machine import available_bytes
from toolchain.device.runtime.backbone_session import Computed

if TYPE_CHECKING:
    from toolchain.bundle import BackboneArtefact
    from toolchain.bundle.release import Release

START_S = 60.0
"""Seconds for the start, the session and the golden cases, beside the self-test's own limit."""
READ_BYTES_PER_S = 10e6
"""Bytes of weights and bundle that the slowest board reads, hashes and packs in a second."""
TEST_S = 120.0
"""The least that a self-test may ask for, however small the backbone."""
CASES = 32
"""As many golden cases as these have their time; an export writes about a dozen."""
BASE_BYTES = 1 << 30
"""Private memory for Python, onnxruntime and the small maps of a net."""
LEAST_BYTES = 384 << 20
"""Python and onnxruntime alone need a good part of it, so a device with less runs nothing."""
MAX_THREADS = 8
"""More would only take memory: each has a stack."""
PER_BYTE = 6
"""Bytes beside it for each byte of weights and bundle: onnxruntime packs and folds copies."""
PER_MAP_BYTE = 16
"""Bytes beside both for each byte of the largest map that enters or leaves a block."""
_FLOAT = 4
# The search path comes first: without it Python would look into the working directory.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from toolchain.core.isolation import leave_networks; leave_networks(); "
    "from toolchain.device.runtime.ort import trial; trial.main()"
)
# What a graph, slots or golden data can be at fault for. Everything else that the process reports
# is told as a fault of the bundle, too.
_TOLD = ("BundleError", "SelftestError", "BackboneMismatchError", "StorageError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the process is to do. Two trials are equal if they try the same graphs on equal weights.

    ``digests``: of the backbone, and of what each session computes. ``bundle``: path of the file,
    whose manifest has the digest ``release``; ``backbone``: folder of the verified artefact.
    ``judged``: other answers than the golden ones are an error, too.
    ``graphs``: stems of the linked graphs. ``threads``: of one operator. The last two are limits.
    """

    digests: tuple[str, ...]
    judged: bool
    bundle: str = field(compare=False)
    release: str = field(compare=False)
    backbone: str = field(compare=False)
    graphs: tuple[str, ...] = field(compare=False)
    threads: int = field(compare=False)
    memory_bytes: int = field(compare=False)
    seconds: float = field(compare=False)


def prove(
    bundle: Path,
    release: Release,
    backbone: BackboneArtefact,
    graphs: Sequence[str],
    *,
    threads: int = 1,
) -> None:
    """Try the linked graphs ``graphs`` of a verified bundle, unless this process saw them pass.

    ``release``: what was read from the file ``bundle``. Its answers are not judged: that is for the
    self-test of whoever loads it. Raises BundleError where a session cannot be made within the
    limits, SelftestError where the golden cases have no answers, StorageError where no process can
    be started.
    """
    _passed(_task(bundle, release, backbone, graphs, threads=threads, judged=False))


def examine(
    bundle: Path,
    release: Release,
    backbone: BackboneArtefact,
    graph: str,
    *,
    threads: int = 1,
) -> str:
    """Try one linked graph as :func:`prove` does, and judge its answers as well.

    Returns what it was tested with, as
    :attr:`toolchain.device.runtime.backbone_session.BackboneSession.tested_with`. So a program that
    loads no onnxruntime installs a domain. Raises as :func:`prove`, and SelftestError for answers
    that are not the golden ones.
    """
    # Not from memory: whoever asks again wants to know whether the device is still well.
    task = _task(bundle, release, backbone, [graph], threads=threads, judged=True)
    return _passed.__wrapped__(task)[0]


def _task(
    bundle: Path,
    release: Release,
    backbone: BackboneArtefact,
    graphs: Sequence[str],
    *,
    threads: int,
    judged: bool,
) -> Trial:
    computed = [Computed.of(release, release.graph(stem)) for stem in graphs]
    # Golden data and slots are a release's own; what a graph costs is not.
    own = (release.digest,) if judged else ()
    return Trial(
        digests=(
            backbone.manifest.graph_digest,
            *own,
            *chain.from_iterable(map(astuple, computed)),
        ),
        judged=judged,
        bundle=str(bundle.resolve()),
        release=release.digest,
        backbone=str(backbone.path.resolve()),
        graphs=tuple(graphs),
        threads=min(threads, MAX_THREADS),
        memory_bytes=_memory_bytes(backbone, bundle.stat().st_size),
        seconds=_seconds(backbone, bundle.stat().st_size, release.time_limit_s),
    )


def _memory_bytes(backbone: BackboneArtefact, bundle_bytes: int) -> int:
    """Return what the process may take: what the backbone lets expect, and no more than is free."""
    blocks = backbone.manifest.blocks
    widest = max(
        math.prod(shape) for block in blocks for shape in (block.shape_in, block.shape_out)
    )
    expected = BASE_BYTES + PER_BYTE * (backbone.weights_bytes + bundle_bytes)
    expected += PER_MAP_BYTE * _FLOAT * widest
    free = available_bytes()
    return expected if free is None else min(expected, max(free, LEAST_BYTES))


def _seconds(backbone: BackboneArtefact, bundle_bytes: int, requested_s: float) -> float:
    """Return how long the process may take; ``requested_s``: what the bundle asks for its test."""
    start = START_S + (backbone.weights_bytes + bundle_bytes) / READ_BYTES_PER_S
    return start + min(requested_s, max(TEST_S, computing_seconds(backbone.manifest.flops, CASES)))


# Only those that passed are remembered: an error leaves nothing.
@lru_cache(maxsize=1024)
def _passed(task: Trial) -> tuple[str, ...]:
    """Return what each graph was tested with."""
    with _private_folder() as folder:
        code, answer = _run(task, folder)
    if code is None:
        raise _refused(task, f"it was stopped after {task.seconds:.0f} s")
    try:
        verdict = json.loads(answer)
    except ValueError:
        verdict = None
    if code != 0 or not isinstance(verdict, dict):
        raise _refused(task, f"it ended with {_ending(code)}")
    if "error" in verdict:
        kind = getattr(errors, verdict["error"]) if verdict["error"] in _TOLD else BundleError
        raise kind(verdict["message"], fix=verdict["fix"])
    return tuple(verdict["tested_with"])


def _refused(task: Trial, what: str) -> BundleError:
    return BundleError(
        f"{task.bundle}: its graphs were tried in a process with limits on memory and time, "
        f"and {what}",
        fix="do not run it unless you know who made it; whoever made it can load it without its "
        "self-test (--no-selftest), which skips the trial as well",
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="da3-trial-", ignore_cleanup_errors=True)
    except OSError as err:
        raise StorageError(
            f"cannot make a folder in {tempfile.gettempdir()}: {err.strerror}",
            fix=room_fix(err, "free some space there, or name another folder in TMPDIR"),
        ) from err


def _run(task: Trial, folder: str) -> tuple[int | None, bytes]:
    """Return exit code and answer of the process; no code if it took too long."""
    # Safe path and no bytecode: the process writes nothing but into its folder.
    environment = {**os.environ, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", _PROGRAM.format(path=[p for p in sys.path if p])]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # A signal from the terminal is for the one who waits, who ends the process.
            start_new_session=True,
        )
    except OSError as err:
        raise StorageError(
            f"cannot start {sys.executable} to try the bundle: {err.strerror}",
            fix="let this program start processes, or load without the self-test (--no-selftest)",
        ) from err
    with process:
        try:
            answer, _ = process.communicate(json.dumps(asdict(task)).encode(), task.seconds)
        except subprocess.TimeoutExpired:
            return None, b""
        finally:
            # Also where somebody interrupts the wait. One that has ended is left alone.
            process.kill()
    return process.returncode, answer


def main() -> None:
    """Do what standard input asks, within its limits, and write the verdict to standard output."""
    # Whatever a library prints is no verdict.
    verdict = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    task = Trial(**json.loads(sys.stdin.read()))
    json.dump(_verdict(task), verdict)
    verdict.close()
    # Nothing that the graph made is taken apart: the system does that at once.
    os._exit(0)


def _verdict(task: Trial) -> dict[str, Any]:
    """Return what the graphs were tested with, or the error's class, message and fix."""
    try:
        return {"tested_with": _try(task)}
    except Da3Error as err:
        return {"error": type(err).__name__, "message": err.message, "fix": err.fix}
    except MemoryError:
        message = f"{task.bundle}: expected to need at most {task.memory_bytes} bytes, got more"
        fix = "end other programs, or do not run it unless you know who made it"
        return {"error": "BundleError", "message": message, "fix": fix}


def _try(task: Trial) -> list[str]:
    """Make a session of each graph and ask it the golden cases; return what it was tested with."""
    # Imported before the limits: what the libraries take themselves is known.
    from toolchain.bundle import BackboneArtefact, open_bundle
    from toolchain.bundle.backbone import ARTEFACT
    from toolchain.bundle.release import read_release
    from toolchain.device.runtime.loading import tested_on
    from toolchain.device.runtime.ort.backbone import make_session, unhashed

    _limit(task)
    opened = open_bundle(task.bundle)
    if opened.manifest_digest != task.release:
        raise BundleError(
            f"{task.bundle}: expected the release {task.release}, got {opened.manifest_digest}",
            fix="nobody may write to a bundle while it is loaded",
        )
    release = read_release(opened)
    folder = Path(task.backbone)
    # Whoever asks has hashed the backbone. Here it is read, and nothing that is computed leaves.
    backbone = unhashed(BackboneArtefact(folder, ARTEFACT.read_manifest(folder)[0]))
    tested_with = []
    for stem in task.graphs:
        graph = release.graph(stem)
        session = make_session(
            backbone, release, graph, number=0, threads=task.threads, provider="cpu"
        )
        try:
            tested_on(session, release, release.name, {}, test=True)
        except SelftestError as err:
            # With a cause it gave no answer. Other answers than the golden ones are no danger.
            if task.judged or err.__cause__ is not None:
                raise
        tested_with.append(session.tested_with)
    return tested_with


def _limit(task: Trial) -> None:
    """Put the limits on this process."""
    # Private memory only: files that are mapped, such as the weights, cost nothing of their own.
    limits = {
        resource.RLIMIT_DATA: task.memory_bytes,
        resource.RLIMIT_CPU: int(task.seconds * max(1, task.threads)) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: task.memory_bytes,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (least, least))
    # Where the machine itself runs out of memory, this process is the one to go (proc(5)).
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
