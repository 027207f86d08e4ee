"""One toy domain through the whole command line, once per test run: train, export, check.

Its pictures lie in class folders, and its backbone is the registered toy. The commands run in this
process, in the folder ``home`` and with its relative default paths, as a user would type them.
"""

from __future__ import annotations

import pickle
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from tests.support import shared, stripes
from tests.support.exported import write_weights
from toolchain.cli import root
from toolchain.recipe import DataSpec, dump, load
from toolchain.recipe.library import packaged

COMMANDS = {
    "too early": "export --domain toy",
    "too little memory": "train --domain toy --threads 1 --budget 200kB",
    "train": "train --domain toy --threads 1 --json",
    "export": "export --domain toy --json",
    "export twice": "export --domain toy",
    "export again": "export --domain toy --overwrite",
    "all in one": "export --domain second --train --json",
    "by another method": "export --domain toy --method head --train --json",
    "check": "check dist/toy.da3b",
    "check as JSON": "check dist/toy.da3b --json",
    "check at zero": "check dist/toy.da3b --tolerance 0",
    "refused kit": "export --domain toy --overwrite --target orin-nano-jp6.2 --tolerance 0.00005 "
    "--json",
}


@dataclass(frozen=True)
class Run:
    """The folder in which all of it happened, and what each of ``COMMANDS`` said."""

    home: Path
    said: dict[str, Result]

    @property
    def bundle(self) -> Path:
        return self.home / "dist" / "toy.da3b"

    @property
    def checkpoint(self) -> Path:
        return self.home / "build" / "domains" / "toy"

    @property
    def cache(self) -> Path:
        return self.home / "build" / "cache"

    @property
    def backbone(self) -> Path:
        (path,) = (self.home / "dist").glob("backbone-*")
        return path


def write_recipe(folder: Path, name: str = "toy") -> Path:
    """Write the recipe of the sample ``cars`` with few pictures."""
    cars = load(packaged() / "cars.yaml")
    toy = replace(
        cars,
        domain=name,
        title="Toy cars",
        data=replace(cars.data, train=60, test=40),
        train=replace(cars.train, epochs=10, batch=16),
    )
    path = folder / f"{name}.yaml"
    path.write_text(dump(toy), encoding="utf-8")
    return path


def write_own(home: Path) -> None:
    """Write ``stripes`` as class folders, and two recipes for them on the registered toy."""
    parts = stripes.data()
    for part, split in (("train", parts.train), ("test", parts.test)):
        pictures, labels = split.batch(np.arange(len(split)))
        for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = home / "pictures" / part / parts.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (home / "recipes").mkdir()
    for name in ("toy", "second"):
        own = replace(
            stripes.recipe(epochs=20, lr=0.03, augment=()),
            domain=name,
            title="Toy stripes",
            data=DataSpec("folder", "pictures", None, None, 0),
            **write_weights(home / "recipes"),
        )
        (home / "recipes" / f"{name}.yaml").write_text(dump(own), encoding="utf-8")


def invoke(*words: str) -> Result:
    """Run ``da3`` with ``words``; stdout and stderr are kept apart."""
    return CliRunner().invoke(root, words, prog_name="da3")


def through_the_command_line() -> Run:
    """Run all of ``COMMANDS`` in one folder; the first worker does it for all."""
    home = shared.FOLDER / "toy-export" / "home"

    def through() -> bytes:
        home.mkdir(parents=True)
        write_own(home)
        with chdir(home):
            results = {name: invoke(*words.split()) for name, words in COMMANDS.items()}
        # What a traceback refers to cannot be pickled.
        return pickle.dumps({name: _plain(result) for name, result in results.items()})

    return Run(home, pickle.loads(shared.once("toy-export/results", through)))


def _plain(result: Result) -> Result:
    return Result(
        runner=CliRunner(),
        stdout_bytes=result.stdout_bytes,
        stderr_bytes=result.stderr_bytes,
        output_bytes=result.output_bytes,
        return_value=None,
        exit_code=result.exit_code,
        exception=None,
    )
