"""``da3 eval``: how well a bundle answers a folder of labelled pictures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    json_option,
    require_folders,
    runner_backbone_option,
    threads_option,
)
from toolchain.cli.show import layout
from toolchain.cli.show.answers import complain_of
from toolchain.cli.show.classes import class_document, class_lines, confusion_lines
from toolchain.cli.show.output import emit
from toolchain.cli.show.progress import counted
from toolchain.core.errors import DataError, RecipeError

if TYPE_CHECKING:
    from toolchain.device.runtime.scoring import Scores

FAILED = 1


@click.command(
    "eval",
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 eval dist/cars.da3b photos/",
        "da3 eval dist/cars.da3b photos/ --page cars.html --json",
    ),
)
@click.argument("bundle", type=FILE)
@click.argument("folder", type=FILE)
@click.option(
    "--part",
    type=click.Choice(["test", "all"]),
    help="The pictures that training holds out, or all of the folder.  [default: test for a folder "
    "with train/ and test/, and for the folder that the domain was trained on; else all]",
)
@runner_backbone_option
@click.option("--page", type=FILE, metavar="FILE", help="Write classes and confusion as HTML.")
@threads_option(1, "Threads of one operator.")
@json_option
def evaluate(
    bundle: Path,
    folder: Path,
    part: str | None,
    backbone: Path | None,
    page: Path | None,
    threads: int,
    as_json: bool,
) -> int:
    """Say how well a bundle answers labelled pictures.

    FOLDER holds a folder for each class, named as the class, or train/ and test/ with such folders
    inside. Of the folder that the domain was trained on the pictures are judged that training held
    out, a fifth of each class; of another folder all are. This needs onnxruntime, but not PyTorch.
    If a picture cannot be used, stderr says why, no figure counts it, and the exit code is 1.
    """
    from toolchain.core.files import write_atomic
    from toolchain.device.runtime.runner import Runner
    from toolchain.device.runtime.scoring import score
    from toolchain.device.store import dist
    from toolchain.recipe.listing import look

    require_folders(page)
    # The classes are the bundle's, whatever the part train holds.
    listing = look(folder, trains=False)
    listing.raise_faults()
    loader, tested = _training(bundle)
    held_out = Counter(listing.classes[place] for _, place in listing.test)
    # Where the counts of all classes are those of its test, this is what it was trained on.
    is_its_own = loader == "folder" and tested in (None, held_out)
    used = part or ("test" if listing.was_split or is_its_own else "all")
    rows = listing.test if used == "test" else listing.pictures
    if not rows:
        raise DataError(
            f"{folder}: expected pictures that training holds out, got none of "
            f"{len(listing.pictures)}: no class has two",
            fix="--part all, if training saw none of these",
        )
    pictures = [(path, listing.classes[place]) for path, place in rows]
    with Runner(dist.survey([bundle]).backbone(backbone), threads=threads) as runner:
        domain = runner.load(bundle)
        click.echo(f"{domain.name}: {len(pictures)} pictures to answer", err=True)
        scores = score(runner, counted(pictures, f"of {len(pictures)} answered"), domain.classes)
    for path, err in scores.unusable:
        complain_of(str(path), err)
    about = {"domain": domain.name, "release": domain.release, "folder": folder, "part": used}
    which = _which(used, by_folders=listing.was_split, loader=loader)
    if page is not None:
        from toolchain.cli.show import confusion_page

        text = confusion_page.page(f"{domain.name}: {folder}", scores.confusion, scores.classes)
        write_atomic(page, text.encode(), overwrite=True)
    emit({**about, **_document(scores)}, _lines(about, which, scores), as_json=as_json)
    return FAILED if scores.unusable else 0


def _training(path: Path) -> tuple[str | None, Counter[str] | None]:
    """Return how the training of a bundle read its pictures, and how many of each class it tested.

    None where nobody can tell.
    """
    from toolchain import recipe
    from toolchain.bundle import open_bundle

    opened = open_bundle(path)
    tested: Counter[str] = Counter()
    for name in opened.names("training"):
        cells = json.loads(opened.blob(name))["metrics"].get("confusion") or ()
        for true, _, count in cells:
            tested[opened.manifest.classes[true]] += count
    try:
        (name,) = opened.names("recipe")
        loader: str | None = recipe.loads(opened.blob(name)).data.loader
    except (ValueError, RecipeError):  # there is none, or one of another version
        loader = None
    return loader, tested or None


def _which(part: str, *, by_folders: bool, loader: str | None) -> str:
    """Return for people which pictures are judged, and whether training saw them."""
    if part == "test" and by_folders:
        return "those of the test"
    if part == "test":
        return "the fifth of each class that training holds out"
    seen = "; training may have seen some, as it read a table" if loader == "csv" else ""
    return f"all of the folder{seen}"


def _document(scores: Scores) -> dict[str, Any]:
    return {
        "pictures": scores.confusion.pictures,
        "accuracy": scores.confusion.accuracy,
        "balanced_accuracy": scores.confusion.balanced_accuracy,
        "gate_rates": scores.gate_rates,
        "ms": round(scores.ms, 3),
        **class_document(scores.confusion, scores.classes),
        "unusable": [
            {"source": path, "message": err.message, "fix": err.fix}
            for path, err in scores.unusable
        ],
    }


def _lines(about: dict[str, Any], which: str, scores: Scores) -> list[str]:
    confusion = scores.confusion
    left_out = f", {len(scores.unusable)} could not be used" if scores.unusable else ""
    return [
        layout.title(f"{about['domain']}: {about['folder']}"),
        *layout.pairs(
            {
                "pictures": f"{confusion.pictures}, {which}{left_out}",
                "accuracy": layout.percent(confusion.accuracy),
                "balanced": f"{layout.percent(confusion.balanced_accuracy)}, mean of classes",
                "took": f"{scores.ms:.1f} ms for a picture, without reading it",
            }
        ),
        "",
        *class_lines(confusion, scores.classes),
        "",
        *confusion_lines(confusion, scores.classes),
        *layout.gates(scores.gate_rates),
    ]
