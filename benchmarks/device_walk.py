"""``python -m benchmarks.device_walk``: a device from its first key to an update that goes back.

Rules of this file: each step is a command that a user would type, printed before it runs. It makes
a repository and a device in one folder of this machine, and changes nothing outside of it. The
update that is bad has its classes in another order: a mistake that no self-test of a net can see,
and that a check of the device's owner does see.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
from PIL import Image

from toolchain.bundle import Payload, open_bundle, pack
from toolchain.bundle.golden import golden_of

PASSPHRASE = "a walk needs no secret"
WENT_BACK = 5
_DA3 = "from toolchain.cli import main; main()"
# What a device's owner would write: it asks for one picture whose class is known.
_CHECK = """\
import json, subprocess, sys
store, domain, picture, expected = sys.argv[1:]
words = ["run", "--store", store, "--domain", domain, picture, "--json"]
ended = subprocess.run([sys.executable, "-c", {da3!r}, *words], capture_output=True)
label = json.loads(ended.stdout)["pictures"][0]["label"] if ended.returncode == 0 else "no answer"
sys.exit(0 if label == expected else f"expected the class {{expected}}, got {{label}}")
"""


@dataclass
class Walk:
    """What the steps share; ``folder`` becomes the keys, the repository and the device."""

    folder: Path
    dist: Path
    domain: str
    versions: int = field(default=0, init=False)

    def say(self, text: str) -> None:
        """Print what the next commands do."""
        click.echo(click.style(f"\n# {text}", bold=True))

    def da3(self, *words: object, code: int = 0) -> str:
        """Run a command of the toolchain, shown as a user would type it; return what it printed."""
        text = [str(word) for word in words]
        click.echo(f"$ {shlex.join(['da3', *text])}")
        ended = subprocess.run(
            [sys.executable, "-c", _DA3, *text],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DA3_KEY_PASSPHRASE": PASSPHRASE},
        )
        click.echo(ended.stdout.rstrip())
        if ended.returncode != code:
            raise SystemExit(f"expected exit code {code}, got {ended.returncode}")
        return ended.stdout

    @property
    def keys(self) -> Path:
        """Where the keys are."""
        return self.folder / "keys"

    @property
    def site(self) -> Path:
        """The repository."""
        return self.folder / "site"

    @property
    def store(self) -> Path:
        """The device's store."""
        return self.folder / "device"

    @property
    def bundle(self) -> Path:
        """The bundle that is released, a copy that the walk may change."""
        return self.folder / f"{self.domain}.da3b"

    def release(self, *, classes: tuple[str, ...] | None = None) -> None:
        """Sign and publish the bundle under another version, or with other names of classes."""
        self.versions += 1
        opened = open_bundle(self.dist / f"{self.domain}.da3b")
        payloads = [Payload(e.role, e.name, opened.blob(e.name)) for e in opened.manifest.files]
        manifest = replace(
            opened.manifest,
            version=f"1.{self.versions}",
            classes=classes or opened.manifest.classes,
        )
        pack(self.bundle, manifest, payloads, overwrite=True)
        self.da3("sign", self.bundle, "--key", self.keys / "domains" / self.domain)
        self.da3("publish", self.site, "--keys", self.keys, self.bundle)


def first_release(walk: Walk) -> None:
    """Make keys, and publish the backbone and the domain."""
    walk.say("Keys: root 2 of 3, one for each domain and backbone")
    manifest = open_bundle(walk.dist / f"{walk.domain}.da3b").manifest
    name = manifest.backbone.name
    walk.da3("keys", "init", walk.keys, "--domain", walk.domain, "--backbone", name)
    walk.say("A signed release of the backbone and of the domain, on a static site")
    (backbone,) = (
        path
        for path in sorted(walk.dist.glob(f"backbone-{name}-*"))
        if json.loads((path / "manifest.json").read_bytes())["graph_digest"]
        == manifest.backbone.graph_digest
    )
    copy = walk.folder / backbone.name
    shutil.copytree(backbone, copy)
    walk.da3("sign", copy, "--key", walk.keys / "backbones" / name)
    walk.da3("publish", walk.site, "--keys", walk.keys, copy)
    walk.release()


def check_of(walk: Walk) -> list[str]:
    """Write the owner's check, with the golden picture whose class is the surest; return it."""
    opened = open_bundle(walk.dist / f"{walk.domain}.da3b")
    golden = golden_of(opened)
    logits = np.sort(golden.logits, axis=1)
    sure = np.where(golden.natural, logits[:, -1] - logits[:, -2], -np.inf)
    case = int(sure.argmax())
    picture = walk.folder / "known.png"
    Image.fromarray(golden.images([case])[0]).save(picture)
    script = walk.folder / "check.py"
    script.write_text(_CHECK.format(da3=_DA3), encoding="utf-8")
    expected = opened.manifest.classes[int(golden.logits[case].argmax())]
    words = [script, walk.store, walk.domain, picture, expected]
    return [sys.executable, *map(str, words)]


def device(walk: Walk) -> None:
    """Make a device that is checked by its owner's command."""
    walk.say("A device: it knows the first root, and where releases come from")
    root = walk.keys / "metadata" / "1.root.json"
    url = f"file://{walk.site.absolute()}"
    walk.da3(
        *("device", "init", "--store", walk.store, "--root", root),
        *("--repository", url, "--domain", walk.domain),
    )
    path = walk.store / "policy.json"
    policy = json.loads(path.read_bytes())
    policy["health"] = {**policy["health"], "seconds": 0, "command": check_of(walk)}
    path.write_text(json.dumps(policy, indent=2), encoding="utf-8")
    click.echo(f"{path}: health.command asks for a picture whose class is known")
    walk.da3("device", "agent", "--once", "--store", walk.store)


@contextmanager
def served(walk: Walk) -> Iterator[None]:
    """Serve what is current, and ask it all the while; tell how many requests failed."""
    words = ["run", "--serve", "0", "--store", str(walk.store), "--json"]
    click.echo(f"$ {shlex.join(['da3', *words])} &")
    stop = threading.Event()
    counts = {"answered": 0, "failed": 0}
    with subprocess.Popen(
        [sys.executable, "-c", _DA3, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(server.stdout.readline() or "}\n")
        url = f"{json.loads(''.join(lines))['url']}/v2/models/{walk.domain}/infer"
        picture = (walk.folder / "known.png").read_bytes()
        asking = threading.Thread(target=_ask, args=(url, picture, counts, stop))
        asking.start()
        try:
            yield
        finally:
            stop.set()
            asking.join()
            server.terminate()
    click.echo(f"the server: {counts['answered']} requests answered, {counts['failed']} failed")
    if counts["failed"]:
        raise SystemExit("expected no request to fail")


def _ask(url: str, picture: bytes, counts: dict[str, int], stop: threading.Event) -> None:
    # The picture's file as it is (docs/serving.md).
    headers = {
        "Inference-Header-Content-Length": "0",
        "Content-Type": "application/octet-stream",
    }
    while not stop.is_set():
        request = urllib.request.Request(url, data=picture, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                counts["answered" if answer.status == 200 else "failed"] += 1
        except OSError:
            counts["failed"] += 1
        time.sleep(0.02)


def updates(walk: Walk) -> None:
    """Publish an update that is good, and one that is bad."""
    walk.say("An update: verified, tested, tried, kept")
    walk.release()
    walk.da3("device", "agent", "--once", "--store", walk.store)
    walk.say("An update that is bad: its classes are in another order. It goes back by itself")
    classes = open_bundle(walk.dist / f"{walk.domain}.da3b").manifest.classes
    walk.release(classes=(*classes[1:], classes[0]))
    walk.da3("device", "agent", "--once", "--store", walk.store, code=WENT_BACK)


@click.command()
@click.option("--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True)
@click.option("--domain", default="cars", show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("build/device"),
    show_default=True,
    help="Made anew: keys, repository and device.",
)
def main(dist: Path, domain: str, folder: Path) -> None:
    """Walk a device from its first key to an update that goes back by itself."""
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    walk = Walk(folder, dist, domain)
    first_release(walk)
    device(walk)
    with served(walk):
        updates(walk)
    walk.say("What runs, what happened, and whether every byte is as it should be")
    walk.da3("device", "status", "--store", walk.store)
    walk.da3("device", "history", "--store", walk.store)
    walk.da3("device", "verify", "--store", walk.store)
    click.echo(f"\ndone in {time.perf_counter() - started:.0f} s; {folder} holds all of it")


if __name__ == "__main__":
    main()
