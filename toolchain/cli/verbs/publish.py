"""``da3 publish``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from toolchain.trust import Published


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 publish site --keys keys dist/cars.release.json",
        "da3 publish site --keys keys",
    ),
)
@click.argument("site", type=FILE)
@click.argument("releases", metavar="[RELEASE]...", nargs=-1, type=FILE)
@click.option(
    "--keys",
    type=FILE,
    required=True,
    metavar="DIR",
    help="The keys; those of snapshot and timestamp sign.",
)
@passphrase_option
@json_option
def publish(
    site: Path,
    releases: tuple[Path, ...],
    keys: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Add signed releases to SITE, a folder that any web server, mirror or USB stick serves.

    Without a RELEASE it makes SITE last longer: run it so each day, as devices refuse a repository
    that stands still for a week. The timestamp is written last, so no reader sees half of it.
    """
    from toolchain import trust

    done = trust.publish(
        site,
        keys,
        releases,
        passphrase=passphrase_from_option(passphrase_file),
        now=current_time(),
    )
    emit(plain(done), _lines(done), as_json=as_json)


def _lines(done: Published) -> Iterator[str]:
    yield layout.title(f"{done.site}: published until {done.expires}")
    for release in done.releases:
        size = "withdrawn" if release.withdrawn else layout.size(release.bytes)
        yield layout.clean(f"  new      {release.unit}, number {release.counter}, {size}")
    for name in done.same:
        yield layout.clean(f"  same     {name}, as it was")
    for name in done.missing:
        yield layout.clean(f"  missing  the backbone {name}: devices without it wait for it")
    for what in done.soon:
        yield layout.clean(f"  soon     sign again before it expires: {what}")
