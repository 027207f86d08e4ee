"""``python -m benchmarks.device``: what an update costs a device, into JSON and docs/results.md.

Rules of this file: real parts. A repository is served on loopback, the agent's rounds are processes
of their own, and a runner in this process follows the store and answers. The domain is one of
ResNet-50; every update brings other weights, so all of it is fetched. Medians, with quartiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks import results
from toolchain import trust
from toolchain.bench import domains
from toolchain.bench.domains import MaterialsSetup
from toolchain.bundle import Payload, open_bundle, pack
from toolchain.cli.show.progress import telling
from toolchain.core.files import write_atomic
from toolchain.core.units import Unit
from toolchain.device import Runner
from toolchain.device.agent import by_hand
from toolchain.device.agent.loop import round_words
from toolchain.device.agent.policy import Health, Policy
from toolchain.device.store import generation
from toolchain.device.store.state import Settings
from toolchain.device.store.store import Store

GOALS = {"update_s": 1.0, "switch_ms": 1.0, "agent_rss_mb": 40.0, "agent_cpu_share": 0.001}
DOMAIN = "parts"
_REST_S = 30.0


@dataclass(frozen=True)
class Publisher:
    """Keys and a site in ``folder``; two contents of one domain."""

    folder: Path
    contents: tuple[Path, Path]
    backbone: Path

    def passphrase(self, _: str) -> str:
        """The passphrase of all keys."""
        return "no secret in a benchmark"

    def now(self) -> datetime:
        """The system's time."""
        return datetime.now(timezone.utc).replace(microsecond=0)

    def begin(self) -> None:
        """Make the keys, and publish the backbone."""
        manifest = open_bundle(self.contents[0]).manifest
        name = manifest.backbone.name
        trust.init(
            self.folder / "keys",
            domains=[DOMAIN],
            backbones=[name],
            passphrase=self.passphrase,
            now=self.now(),
        )
        self._release(self.backbone, Unit("backbones", name))

    def update(self, index: int) -> str:
        """Publish a release of the domain with the other content; return its digest."""
        opened = open_bundle(self.contents[index % 2])
        payloads = [Payload(e.role, e.name, opened.blob(e.name)) for e in opened.manifest.files]
        path = self.folder / f"{DOMAIN}.da3b"
        manifest = replace(opened.manifest, domain=DOMAIN, version=f"1.{index}")
        pack(path, manifest, payloads, overwrite=True)
        self._release(path, Unit("domains", DOMAIN))
        return open_bundle(path).manifest_digest

    def _release(self, path: Path, unit: Unit) -> None:
        key = self.folder / "keys" / str(unit)
        signed = trust.sign(path, key, passphrase=self.passphrase, now=self.now())
        trust.publish(
            self.folder / "site",
            self.folder / "keys",
            [signed.path],
            passphrase=self.passphrase,
            now=self.now(),
        )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def loopback(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def updates(
    publisher: Publisher, store: Store, rounds: int, notify: Callable[[str], None]
) -> list[float]:
    """Return the seconds from the start of a round until the runner answers by the new release."""
    _round(store)
    seconds = []
    with Runner.watch(store.path) as runner:
        picture = runner.prepare([_picture(runner)], DOMAIN)
        for index in range(1, rounds + 1):
            digest = publisher.update(index)
            notify(f"update {index} of {rounds}")
            started = time.perf_counter()
            with subprocess.Popen(round_words(store.path), stdout=subprocess.DEVNULL) as agent:
                while runner.infer(picture, DOMAIN).release != digest:
                    if agent.poll():
                        raise SystemExit("the agent's round failed")
                    time.sleep(0.001)
                seconds.append(time.perf_counter() - started)
    return seconds


def _picture(runner: Runner) -> Any:
    import numpy as np

    side = runner.domains[DOMAIN].preprocess.size
    return np.zeros((side, side, 3), np.uint8)


def _round(store: Store) -> None:
    subprocess.run(round_words(store.path), check=True, stdout=subprocess.DEVNULL)


def switches(store: Store, rounds: int) -> list[float]:
    """Return the milliseconds of exchanging both links, as an activation does."""
    state = store.state()
    milliseconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        generation.point(store.layout, current=state.current, previous=state.previous)
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return milliseconds


def at_rest(store: Store) -> tuple[float, float]:
    """Return what the agent's process takes between two rounds: MB resident, share of a core."""
    program = "from toolchain.cli import main; main()"
    words = [sys.executable, "-c", program, "device", "agent", "--store", str(store.path)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as agent:
        try:
            # Its first step and its first round come right after the start.
            while _children(agent.pid) or _cpu_s(agent.pid) == 0:
                time.sleep(0.5)
            time.sleep(5)
            before = _cpu_s(agent.pid)
            time.sleep(_REST_S)
            share = (_cpu_s(agent.pid) - before) / _REST_S
            return _resident_bytes(agent.pid) / 1e6, share
        finally:
            agent.terminate()


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, proc(5), stat, fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(work: Path, rounds: int, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return every figure; ``work`` keeps the domains, which take a minute to make."""
    made = domains.make(work, MaterialsSetup("resnet50", 64, 2, classes=10), notify=notify)
    with TemporaryDirectory() as name, TemporaryDirectory() as home:
        publisher = Publisher(Path(name), made.bundles[:2], made.backbone)  # type: ignore[arg-type]
        publisher.begin()
        publisher.update(0)
        size = (Path(name) / f"{DOMAIN}.da3b").stat().st_size
        with loopback(Path(name) / "site") as url:
            policy = Policy(repository=url, domains=(DOMAIN,), health=Health(seconds=0))
            root = Path(name) / "keys" / "metadata" / "1.root.json"
            store = by_hand.init(Path(home) / "store", root, policy, Settings())
            seconds = updates(publisher, store, rounds, notify)
            milliseconds = switches(store, 20 * rounds)
            notify(f"the agent at rest, {_REST_S:.0f} s")
            resident, share = at_rest(store)
    return {
        "bundle_bytes": size,
        "rounds": rounds,
        "update_s": median(seconds),
        "update_quartiles_s": quantiles(seconds, n=4)[::2],
        "switch_ms": median(milliseconds),
        "switch_quartiles_ms": quantiles(milliseconds, n=4)[::2],
        "agent_rss_mb": resident,
        "agent_cpu_share": share,
        "goals": GOALS,
    }


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/bench/device"))
@click.option("--rounds", type=click.IntRange(4, 1000), default=11, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench/device.json"))
@click.option("--results", "page", type=click.Path(path_type=Path), default=Path("docs/results.md"))
def main(work: Path, rounds: int, out: Path, page: Path) -> None:
    """Measure updates of a device, and its agent at rest."""
    work.mkdir(parents=True, exist_ok=True)
    with telling("device") as notify:
        document = measure(work, rounds, notify)
    write_atomic(out, (json.dumps(document, indent=1) + "\n").encode(), overwrite=True)
    results.put(page, results.device(document))
    for name, goal in GOALS.items():
        click.echo(f"{'ok  ' if document[name] <= goal else 'OVER'} {name} {document[name]:.4g}")


if __name__ == "__main__":
    main()
