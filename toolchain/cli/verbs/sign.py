"""``da3 sign``."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    current_time,
    json_option,
    passphrase_from_option,
    passphrase_option,
)
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit, plain


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 sign dist/cars.da3b --key keys/domains/cars",
        "da3 sign dist/backbone-resnet20-32px-b28c81f0c664 --key keys/backbones/resnet20",
    ),
)
@click.argument("content", metavar="BUNDLE|BACKBONE", type=FILE)
@click.option(
    "--key", type=FILE, required=True, metavar="DIR", help="The folder of the unit's key."
)
@click.option(
    "--kit",
    "kits",
    multiple=True,
    type=FILE,
    metavar="DIR",
    help="A kit that goes with the backbone; may be repeated.",
)
@click.option(
    "--counter",
    type=click.IntRange(1),
    metavar="N",
    help="Number of the release.  [default: the next one]",
)
@click.option(
    "--expires",
    "days",
    type=click.IntRange(1, 3650),
    default=365,
    show_default=True,
    metavar="DAYS",
    help="How long devices take it.",
)
@click.option("--withdraw", is_flag=True, help="Sign that the unit has no release any more.")
@passphrase_option
@json_option
def sign(
    content: Path,
    key: Path,
    kits: tuple[Path, ...],
    counter: int | None,
    days: int,
    withdraw: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign a bundle, or a backbone with its kits, as the next release.

    Every byte is verified first. The release is written beside it, as NAME.release.json. Its
    number never repeats: the key's folder keeps a list. To go back, sign the old bundle under a
    new number.
    """
    from toolchain import trust
    from toolchain.device.engine.kit import open_kit

    signed = trust.sign(
        content,
        key,
        kits=[open_kit(kit) for kit in kits],
        counter=counter,
        days=days,
        withdraw=withdraw,
        passphrase=passphrase_from_option(passphrase_file),
        now=current_time(),
    )
    release = signed.release
    facts = {
        "release": f"{release.unit}, number {release.counter}",
        "file": signed.path,
        "expires": release.expires,
        "signs": ", ".join(file.name for file in release.files) or "that it is withdrawn",
        "size": layout.size(release.bytes),
    }
    lines = [layout.title(f"{content}: signed"), *layout.pairs(facts)]
    emit({"path": signed.path, "release": plain(release)}, lines, as_json=as_json)
