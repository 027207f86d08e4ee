"""Training with a bar, where it goes, and what an export asks of it.

Rules of this file: what ``da3 train`` and ``da3 export`` share. It words notes and fixes as options
of these commands; the library trains, refuses and compares.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.cli.boundary import command_in_fix, name_command
from toolchain.cli.show import layout
from toolchain.cli.show.output import CACHE
from toolchain.cli.show.progress import Bar
from toolchain.core.allocator import bound_memory
from toolchain.core.errors import CheckpointError, UsageError
from toolchain.core.files import is_folder
from toolchain.core.words import BY

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.training import AttachedModel, TrainReport
    from toolchain.training.data import DomainData
    from toolchain.training.loop.devices import Arithmetic

CHECKPOINTS = Path("build/domains")


@dataclass(frozen=True, slots=True)
class Planned:
    """What a command is about: the recipe, how its files are called, and where it is trained.

    ``folder`` holds the checkpoint. ``command`` trains the recipe into it.
    """

    recipe: Recipe
    name: str
    folder: Path
    command: str


def planned(
    named: Recipe,
    file: Path | None,
    method: str | None,
    settings: Sequence[str],
    folder: Path | None,
) -> Planned:
    """Return what the options mean; ``named`` is the recipe that they name, ``file`` its file.

    ``folder`` is None for the default. Stderr gets :func:`crop_note`. Raises as :func:`varied`.
    """
    recipe = varied(named, method, settings)
    if note := crop_note(recipe, named, settings):
        click.echo(note, err=True)
    name = output_name(recipe, named)
    out = folder or CHECKPOINTS / name
    command = train_command(recipe.domain, file, name, out, method=method, settings=settings)
    return Planned(recipe, name, out, command)


def varied(recipe: Recipe, method: str | None, settings: Sequence[str]) -> Recipe:
    """Return ``recipe`` with ``method`` in place of its own if there is one; then ``settings``.

    Raises RecipeError, UnknownNameError, UsageError.
    """
    from toolchain.recipe import changed

    recipe = recipe if method is None else recipe.by(method)
    other = changed(recipe, settings) if settings else recipe
    if other.domain != recipe.domain:
        raise UsageError(
            f"expected the recipe's own domain {recipe.domain!r}, got --set domain={other.domain}",
            fix=f"train into a folder of its own with --out, or copy the recipe to "
            f"{other.domain}.yaml and change its domain",
        )
    return other


def crop_note(recipe: Recipe, named: Recipe, settings: Sequence[str]) -> str:
    """Return a note where ``settings`` made the size alone smaller, so that less of it is seen.

    ``named``: the recipe before them. Nobody who sets preprocess.resize, too, needs the note.
    """
    own, before = recipe.preprocess, named.preprocess
    stated = any(setting.partition("=")[0].strip() == "preprocess.resize" for setting in settings)
    if stated or own.resize != before.resize or own.size >= before.size:
        return ""
    whole = round(before.resize * own.size / before.size)
    return (
        f"note: with preprocess.size {own.size} and preprocess.resize {own.resize} the model sees "
        f"the middle {own.size / own.resize:.0%} of a picture's shorter side, and "
        f"{before.size / before.resize:.0%} in the recipe; to see as much: "
        f"--set preprocess.resize={whole}"
    )


def output_name(recipe: Recipe, named: Recipe) -> str:
    """Return how the files of a domain are called: ``cars``, ``cars@head`` by another method.

    ``recipe`` is what is trained, ``named`` what the domain's file says. Two methods on one domain
    then have a checkpoint and a bundle each.
    """
    same = recipe.method == named.method
    return recipe.domain if same else f"{recipe.domain}{BY}{recipe.method}"


def train_command(
    domain: str,
    file: Path | None,
    name: str,
    out: Path,
    *,
    method: str | None = None,
    settings: Sequence[str] = (),
) -> str:
    """Return the command that trains ``domain`` into ``out``, by ``method`` if one is named.

    ``name``: its ``output_name``. ``settings``: those of ``--set``.
    """
    source = f"--domain {shlex.quote(domain)}"
    if file is not None:
        source = f"--recipe {shlex.quote(str(file))}"
    place = "" if out == CHECKPOINTS / name else f" --out {shlex.quote(str(out))}"
    other = "" if method is None else f" --method {method}"
    values = "".join(f" --set {shlex.quote(setting)}" for setting in settings)
    return f"da3 train {source}{other}{values}{place}"


def train_shown(
    plan: Planned,
    *,
    cache: Path,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    budget: str | None = None,
    log: Path | None = None,
    device: str = "cpu",
    precision: Arithmetic | None = None,
) -> TrainReport:
    """Train and show progress on stderr; the fix of an error names the command that goes on.

    Before the first step the untrained domain is exported for trial, its structure kept in
    ``cache``. ``budget``: a size such as ``64MB``. ``precision``: None for mixed on a GPU and
    float32 on a CPU. The rest is as in
    :func:`toolchain.training.loop.from_recipe.train_recipe`.
    """
    bar = Bar(sys.stderr, plan.recipe.domain)
    bound_memory()
    from toolchain.training.loop.devices import Device
    from toolchain.training.loop.from_recipe import train_recipe
    from toolchain.training.memory.size import parse_size

    def trial(model: AttachedModel, data: DomainData) -> None:
        # PyTorch and ONNX take seconds to start
        from toolchain.export.rehearsal import need_line, rehearse

        bar.keep(need_line(model))
        rehearse(model, data, recipe=plan.recipe, cache=cache, notify=bar.part)

    command = plan.command + _more_options(
        budget=budget,
        log=log,
        device=None if device == "cpu" else device,
        precision=precision,
        cache=None if cache == CACHE else cache,
        threads=threads,
    )

    with command_in_fix(command), closing(bar):
        report = train_recipe(
            plan.recipe,
            out=plan.folder,
            resume=resume,
            overwrite=overwrite,
            progress=bar,
            notify=bar.keep,
            threads=threads,
            memory=None if budget is None else parse_size(budget),
            check=trial,
            log=log,
            device=Device(device, precision or ("fp32" if device == "cpu" else "mixed")),
        )
    if report.fault is not None:
        name_command(report.fault, command)
    return report


def must_train(plan: Planned, *, may: bool) -> bool:
    """Tell whether an export has to train first, as there is no checkpoint yet.

    Raises CheckpointError if it has to and ``may`` not; the fix names the command that trains.
    """
    if is_folder(plan.folder):
        return False
    if not may:
        raise CheckpointError(
            f"expected a trained domain at {plan.folder}, found none",
            fix=f"{plan.command} (or add --train)",
        )
    return True


def train_to_export(plan: Planned, *, cache: Path) -> None:
    """Train as :func:`train_shown`; raises TrainingError for a domain with a fault, too."""
    report = train_shown(plan, cache=cache)
    click.echo("\n".join(layout.paragraph(report.conclusion)), err=True)
    if (
        fault := report.fault
    ) is not None:  # its checkpoint is there: whoever exports it knows what it is
        fault.fix += ", or export it as it is: run the same command again"
        raise fault


def require_own_checkpoint(plan: Planned) -> None:
    """Refuse a checkpoint that another recipe trained; say on stderr where nobody can tell.

    Raises CheckpointError, StorageError.
    """
    from toolchain.export.refusals import hides_differences, refuse_foreign, trained_by

    info = trained_by(plan.folder)
    with command_in_fix(plan.command):
        refuse_foreign(plan.folder, info, plan.recipe)
    if hides_differences(info, plan.recipe):
        click.echo(
            "note: the recipe is not word for word the one that trained this domain, whose "
            "checkpoint is of an earlier version and does not say what differs; the bundle's "
            "recipe.yaml will be the present one",
            err=True,
        )


def _more_options(**options: object) -> str:
    """Return those of ``options`` that are not None, as they are typed."""
    return "".join(
        f" --{name} {shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    )
