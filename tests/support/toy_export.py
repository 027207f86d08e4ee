"""One toy domain through the whole command line, once per test run: train, export, check.

The commands run in this process, in the folder ``home`` and with its relative default paths, as a
user would type them.
"""

from __future__ import annotations

import pickle
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from click.testing import CliRunner, Result

from tests.support import shared
from toolchain.cli import root
from toolchain.recipe import dump, load
from toolchain.recipe.library import packaged

COMMANDS = {
    "too early": "export --domain toy",
    "too little memory": "train --domain toy --threads 1 --budget 4MB",
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


def write_recipe(folder: Path, name: str = "toy", epochs: int = 10) -> Path:
    """Write the recipe of the sample ``cars`` at toy size."""
    cars = load(packaged() / "cars.yaml")
    toy = replace(
        cars,
        domain=name,
        title="Toy cars",
        data=replace(cars.data, train=60, test=40),
        train=replace(cars.train, epochs=epochs, batch=16),
    )
    path = folder / f"{name}.yaml"
    path.write_text(dump(toy), encoding="utf-8")
    return path


def invoke(*words: str) -> Result:
    """Run ``da3`` with ``words``; stdout and stderr are kept apart."""
    return CliRunner().invoke(root, words, prog_name="da3")


def through_the_command_line() -> Run:
    """Run all of ``COMMANDS`` in one folder; the first worker does it for all."""
    home = shared.FOLDER / "toy-export" / "home"

    def through() -> bytes:
        (home / "recipes").mkdir(parents=True)
        write_recipe(home / "recipes")
        write_recipe(home / "recipes", "second")
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
