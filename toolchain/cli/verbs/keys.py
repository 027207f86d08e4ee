"""``da3 keys``: the ceremonies of a repository's keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.cli.boundary import BoundedCommand, BoundedGroup
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
    from toolchain.trust import KeyringFacts

_uri_option = click.option(
    "--uri",
    default="",
    metavar="URI",
    help="Use this key of a token or a service, such as pkcs11:token=NAME;id=%02.",
)
_domain_option = click.option("--domain", metavar="NAME", help="The domain.")
_backbone_option = click.option("--backbone", metavar="NAME", help="The backbone.")


@click.group(
    cls=BoundedGroup,
    epilog=layout.example(
        "da3 keys init keys --domain cars --backbone resnet20",
        "da3 keys show keys",
        "da3 keys rotate keys domains/cars",
    ),
)
def keys() -> None:
    """Make, show, replace and revoke the keys that releases are signed with.

    DIR is a folder of keys, each encrypted by a passphrase: the first line of --passphrase-file, or
    the environment's DA3_KEY_PASSPHRASE, or asked for. docs/trust.md says which key belongs where.
    """


@keys.command(
    cls=BoundedCommand,
    epilog=layout.example("da3 keys init keys --domain cars --domain digits --backbone resnet20"),
)
@click.argument("folder", metavar="DIR", type=FILE)
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME", help="A domain that gets a key."
)
@click.option(
    "--backbone", "backbones", multiple=True, metavar="NAME", help="A backbone that gets a key."
)
@passphrase_option
@json_option
def init(
    folder: Path,
    domains: tuple[str, ...],
    backbones: tuple[str, ...],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Hold the first ceremony: make all keys, and sign the first root.

    Root has three keys, of which two sign. Give devices keys/metadata/1.root.json.
    """
    from toolchain import trust

    facts = trust.init(
        folder,
        domains=domains,
        backbones=backbones,
        passphrase=passphrase_from_option(passphrase_file, new=True),
        now=current_time(),
    )
    _emit(facts, as_json)


@keys.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 keys add keys --domain flowers",
        "da3 keys add keys --domain flowers --uri 'pkcs11:token=flowers;id=%02'",
    ),
)
@click.argument("folder", metavar="DIR", type=FILE)
@_domain_option
@_backbone_option
@_uri_option
@passphrase_option
@json_option
def add(
    folder: Path,
    domain: str | None,
    backbone: str | None,
    uri: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a key for a domain or a backbone that has none. The key of targets signs it."""
    from toolchain import trust

    unit = trust.named_unit(domain, backbone)
    passphrase = passphrase_from_option(passphrase_file)
    facts = trust.add(folder, unit, passphrase=passphrase, now=current_time(), uri=uri)
    _emit(facts, as_json)


@keys.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 keys rotate keys timestamp",
        "da3 keys rotate keys root/1f3a9c20d4e5",
        "da3 keys rotate keys domains/cars",
    ),
)
@click.argument("folder", metavar="DIR", type=FILE)
@click.argument("role")
@_uri_option
@passphrase_option
@json_option
def rotate(folder: Path, role: str, uri: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Replace the keys of ROLE by new ones, and remove the old ones.

    ROLE is root, targets, snapshot, timestamp, fleet, domains/NAME, backbones/NAME, or root/ID for
    one key of root, such as a lost one. Keys of root and of units may be lost; those of two others
    of root, or of targets, must be there to sign.
    """
    from toolchain import trust

    passphrase = passphrase_from_option(passphrase_file)
    facts = trust.rotate(folder, role, passphrase=passphrase, now=current_time(), uri=uri)
    _emit(facts, as_json)


@keys.command(cls=BoundedCommand, epilog=layout.example("da3 keys revoke keys --domain flowers"))
@click.argument("folder", metavar="DIR", type=FILE)
@_domain_option
@_backbone_option
@passphrase_option
@json_option
def revoke(
    folder: Path,
    domain: str | None,
    backbone: str | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Trust no key for a domain or a backbone any more, and remove its keys."""
    from toolchain import trust

    unit = trust.named_unit(domain, backbone)
    passphrase = passphrase_from_option(passphrase_file)
    facts = trust.revoke(folder, unit, passphrase=passphrase, now=current_time())
    _emit(facts, as_json)


@keys.command(cls=BoundedCommand, epilog=layout.example("da3 keys renew keys"))
@click.argument("folder", metavar="DIR", type=FILE)
@passphrase_option
@json_option
def renew(folder: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign root and targets again with the same keys, before they expire."""
    from toolchain import trust

    passphrase = passphrase_from_option(passphrase_file)
    _emit(trust.renew(folder, passphrase=passphrase, now=current_time()), as_json)


@keys.command(cls=BoundedCommand, epilog=layout.example("da3 keys show keys"))
@click.argument("folder", metavar="DIR", type=FILE)
@json_option
def show(folder: Path, as_json: bool) -> None:
    """Show the roles, their keys, where these are, and when each role expires."""
    from toolchain import trust

    _emit(trust.show(folder), as_json)


def _emit(facts: KeyringFacts, as_json: bool) -> None:
    from toolchain.cli.show.signed import keyring

    lines = [layout.title(f"{facts.path}: keys of a repository"), *keyring(facts)]
    emit(plain(facts), lines, as_json=as_json)
