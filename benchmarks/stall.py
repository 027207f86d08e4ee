"""``python -m benchmarks.stall``: what other clients of a server wait for a heavy request.

Rules of this file: the server runs in a process of its own, as ``da3 run --serve`` does, and the
clients here. Slices of time follow each other, each with one kind of load or with none, in an order
that turns round, so that a busy machine slows all kinds down alike. In each slice one client asks
for health and one for an answer, and both note how long that took. Nobody types a figure.
"""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks import results
from toolchain.bench import domains, machine
from toolchain.core.errors import DataError
from toolchain.core.files import MIB
from toolchain.core.timing import Notify, percentile95, quartiles
from toolchain.device import Runner
from toolchain.device.serve import Limits, Server
from toolchain.device.serve.protocol import decode
from toolchain.device.serve.server import share_the_interpreter

QUIET = "nothing else"
BOUND_MS = 100.0
"""What health is to be answered within."""
_PAUSE_S = 0.005
_TIMEOUT_S = 60.0

Sent = tuple[str, str, bytes, Mapping[str, str]]
"""Method, path, body and headers of a request."""
_HEALTH: Sent = ("GET", "/v2/health/ready", b"", {})


@dataclass(frozen=True, slots=True, kw_only=True)
class StallSetup:
    """``rounds`` slices of ``seconds`` for each load, which ``clients`` send without a pause.

    ``json_bytes``: of the bodies that are as large as a server takes.
    """

    rounds: int = 6
    seconds: float = 3.0
    clients: int = 2
    json_bytes: int = Limits().json_bytes


def loads(
    name: str, other: str, side: int, limit: int = Limits().json_bytes
) -> dict[str, Sent | None]:
    """Return by its title what the clients send; None for nothing.

    ``name`` is a domain that is loaded, ``other`` one that is loaded again and again meanwhile.
    ``limit``: bytes of JSON.
    """
    mib = f"{limit / MIB:.3g} MiB"
    place = f"/v2/models/{name}/infer"
    count = 64
    values = np.random.default_rng(0).normal(size=count * 3 * side * side).round(4).tolist()
    image = {"name": "image", "datatype": "FP32", "shape": [count, 3, side, side], "data": values}
    numbers = json.dumps({"inputs": [image]}).encode()

    def filled(value: bytes, size: int) -> bytes:
        body = b'{"inputs":[' + value * ((size - 20) // len(value))
        return body.rstrip(b",") + b"]}"

    return {
        QUIET: None,
        f"{count} pictures as JSON numbers, {len(numbers) / MIB:.1f} MiB": (
            *("POST", place, numbers),
            {},
        ),
        f"JSON numbers, {mib}": ("POST", place, filled(b"1.25,", limit), {}),
        f"lists of a number in JSON, {mib}": (
            *("POST", place, filled(b"[1],", limit)),
            {},
        ),
        f"brackets in JSON, {mib}": ("POST", place, filled(b"[],", limit), {}),
        f"brackets alone, {2 * limit / MIB:.3g} MiB": ("POST", place, b"[" * (2 * limit), {}),
        "loads of a bundle": ("POST", f"/v2/repository/models/{other}/load", b"", {}),
    }


def picture(name: str, side: int) -> Sent:
    """Return a request for one small picture, as binary data."""
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    headers = {"Inference-Header-Content-Length": "0"}
    return "POST", f"/v2/models/{name}/infer", data.getvalue(), headers


class Client(threading.Thread):
    """Sends one request again and again; ``times`` in milliseconds, ``failed`` of those that count.

    ``pause_s``: between two requests. ``counts``: whether each must be answered with 200.
    """

    def __init__(self, port: int, request: Sent, *, pause_s: float = 0.0, counts: bool = True):
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.failed = 0
        self._port, self._request = port, request
        self._pause_s, self._counts = pause_s, counts
        self._ended = threading.Event()

    def run(self) -> None:
        """Ask until :meth:`end`."""
        method, path, body, headers = self._request
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        while not self._ended.is_set():
            started = time.perf_counter()
            status = 0
            try:
                connection.request(method, path, body or None, dict(headers))
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                # The server closes a connection whose body it does not want to read.
                connection.close()
            self.times.append(1e3 * (time.perf_counter() - started))
            self.failed += self._counts and status != 200
            self._ended.wait(self._pause_s)
        connection.close()

    def end(self) -> None:
        """Let the request at hand end, and no other begin."""
        self._ended.set()
        self.join()


def measure(
    backbone: Path,
    bundles: Sequence[Path],
    side: int,
    setup: StallSetup,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Return the document: a row for each load, with the times of health and of answers.

    ``stalled_ms`` in it is :func:`stalled_ms` of the load's body.

    ``bundles``: two of different names, side by side in one folder.
    """
    first, second = (path.stem for path in bundles)
    kinds = loads(first, second, side, setup.json_bytes)
    rows: dict[str, dict[str, list[list[float]]]] = {
        kind: {"health": [], "answers": []} for kind in kinds
    }
    sent, failed = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    own = machine.machine()
    notify("turns between parsers")
    stalled = {
        kind: stalled_ms(request[2], setup) if request else 0.0 for kind, request in kinds.items()
    }
    with serving(backbone, bundles[0]) as port:
        for turn in range(setup.rounds):
            order = list(kinds) if turn % 2 == 0 else list(kinds)[::-1]
            for kind in order:
                notify(f"round {turn + 1} of {setup.rounds}: {kind}")
                heavy = kinds[kind]
                clients = [Client(port, heavy, counts=False) for _ in range(setup.clients) if heavy]
                health = Client(port, _HEALTH, pause_s=_PAUSE_S)
                answers = Client(port, picture(first, side), pause_s=_PAUSE_S)
                for thread in (*clients, health, answers):
                    thread.start()
                time.sleep(setup.seconds)
                for thread in (health, answers, *clients):
                    thread.end()
                rows[kind]["health"].append(health.times)
                rows[kind]["answers"].append(answers.times)
                sent[kind] += sum(len(client.times) for client in clients)
                failed[kind] += health.failed + answers.failed
    return {
        "machine": own | {"load_after": machine.machine()["load"]},
        "versions": machine.versions(),
        "setup": {"rounds": setup.rounds, "seconds": setup.seconds, "clients": setup.clients},
        "bound_ms": BOUND_MS,
        "rows": {
            kind: {
                "sent": sent[kind],
                "failed": failed[kind],
                "stalled_ms": stalled[kind],
                **{what: figures(times) for what, times in each.items()},
            }
            for kind, each in rows.items()
        },
    }


def stalled_ms(body: bytes, setup: StallSetup) -> float:
    """Return the most processor time between two turns of a thread while others parse ``body``.

    Time of the processor and not of the clock: what other programs do does not count. All threads
    of the process count, so a thread that only waits for its turn sees who kept it.
    """

    def parse() -> None:
        for _ in range(setup.rounds):
            with suppress(DataError):
                decode(body, None, Limits())

    parsers = [threading.Thread(target=parse) for _ in range(setup.clients)]
    for parser in parsers:
        parser.start()
    longest, last = 0.0, time.process_time()
    while any(parser.is_alive() for parser in parsers):
        time.sleep(0.001)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    return 1e3 * longest


def figures(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the median of the rounds' medians with its quartiles, and what all times show.

    That is the 95th percentile, the largest, and how many are ``late``: above :data:`BOUND_MS`.
    """
    medians = [median(times) for times in rounds]
    every = [time_ms for times in rounds for time_ms in times]
    return {
        "count": len(every),
        "median_ms": median(medians),
        "quartiles_ms": quartiles(medians),
        "p95_ms": percentile95(every),
        "largest_ms": max(every),
        "late": sum(time_ms > BOUND_MS for time_ms in every),
    }


@contextmanager
def serving(backbone: Path, bundle: Path) -> Iterator[int]:
    """Yield the port of a server in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.stall", "--child", str(backbone), str(bundle)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            with suppress(OSError):
                process.stdin.close()


def serve(backbone: Path, bundle: Path) -> None:
    """Serve ``bundle`` and let its neighbours be loaded, until standard input ends."""
    share_the_interpreter()
    with Runner(backbone, sessions=2) as runner:
        runner.load(bundle, name=bundle.stem)
        with Server(runner, repository=bundle.parent, control=True) as server:
            sys.stdout.write(f"{server.port}\n")
            sys.stdout.flush()
            sys.stdin.read()


@click.command()
@click.option("--backbone", default="resnet20", show_default=True)
@click.option("--side", default=32, show_default=True, help="Pixels.")
@click.option("--rounds", type=click.IntRange(1), default=StallSetup().rounds, show_default=True)
@click.option("--json", "document", type=Path, default=Path("build/bench/stall.json"))
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"), show_default=True)
@click.option("--child", type=Path, nargs=2, hidden=True)
def main(
    backbone: str,
    side: int,
    rounds: int,
    document: Path,
    tables: Path,
    child: tuple[Path, Path] | None,
) -> None:
    """Write the document, and the section of the results."""
    if child is not None:
        serve(*child)
        return

    def notify(text: str) -> None:
        click.echo(text, err=True)

    with tempfile.TemporaryDirectory(prefix="da3-stall-") as folder:
        made = domains.make(
            Path(folder), domains.MaterialsSetup(backbone, side, 2, 10), notify=notify
        )
        measured = measure(made.backbone, made.bundles, side, StallSetup(rounds=rounds), notify)
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(json.dumps(measured, indent=1) + "\n")
    results.put(tables, results.stall(measured))


if __name__ == "__main__":
    main()
