"""Training with a bar: what ``da3 train`` and ``da3 export --train`` share."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.cli.boundary import command_in_fix
from toolchain.cli.show.progress import Bar

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.training import TrainReport

CHECKPOINTS = Path("build/domains")


def train_command(domain: str, file: Path | None, out: Path, *, method: str | None = None) -> str:
    """Return the command that trains ``domain`` into ``out``, by ``method`` if one is named."""
    source = f"--domain {shlex.quote(domain)}"
    if file is not None:
        source = f"--recipe {shlex.quote(str(file))}"
    place = "" if out == CHECKPOINTS / domain else f" --out {shlex.quote(str(out))}"
    other = "" if method is None else f" --method {method}"
    return f"da3 train {source}{other}{place}"


def train_shown(
    recipe: Recipe,
    out: Path,
    command: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> TrainReport:
    """Train and show progress on stderr; the fix of an error names ``command``.

    The rest is as in :func:`toolchain.training.loop.from_recipe.train_recipe`.
    """
    from toolchain.training.loop.from_recipe import train_recipe

    with command_in_fix(command):
        return train_recipe(
            recipe,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=Bar(sys.stderr, recipe.domain),
            notify=partial(click.echo, err=True),
            threads=threads,
            memory=memory,
        )
