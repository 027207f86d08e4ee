"""What people see of signed metadata, of sites and of keys.

Rules of this file: as :mod:`toolchain.cli.show.files`.
"""

from __future__ import annotations

from collections.abc import Iterator

from toolchain.cli.show import layout
from toolchain.trust import KeyringFacts, MetadataFacts, RoleFacts, SignedRelease, SiteFacts

_NOT_CHECKED = "not checked: a device checks them, from the root that it was given"


def view(facts: MetadataFacts | SiteFacts | KeyringFacts) -> list[str]:
    """Return the lines for one of the three."""
    match facts:
        case MetadataFacts():
            return metadata(facts)
        case SiteFacts():
            return site(facts)
    return keyring(facts)


def metadata(facts: MetadataFacts) -> list[str]:
    """Return the lines for a file of metadata."""
    about = {
        "role": facts.role,
        "version": str(facts.version),
        "expires": facts.expires,
        **({"published": facts.issued} if facts.issued else {}),
        "signed by": layout.some([one[:12] for one in facts.signatures]) or "nobody",
        "signatures": _NOT_CHECKED,
    }
    lines = layout.pairs({**about, **(_release(facts.release) if facts.release else {})})
    if facts.keys:
        rows = [(role, layout.some([one[:12] for one in ids])) for role, ids in facts.keys.items()]
        lines += ["", *layout.table(("role", "trusted keys"), layout.shortened(rows))]
    if facts.versions:
        rows = [(role, str(version)) for role, version in sorted(facts.versions.items())]
        lines += ["", *layout.table(("role", "version"), layout.shortened(rows), right="1")]
    return lines


def _release(release: SignedRelease) -> dict[str, str]:
    if release.withdrawn or release.backbone is None:
        return {"release": f"number {release.counter}: the unit is withdrawn"}
    return {
        "release": f"number {release.counter}, {layout.size(release.bytes)}",
        "backbone": f"{release.backbone.name}  {release.backbone.weights_digest}",
        **{file.name: f"{file.digest}, {layout.size(file.size)}" for file in release.files},
    }


def site(facts: SiteFacts) -> list[str]:
    """Return the lines for a site."""
    about = {
        "root": str(facts.root),
        "snapshot": str(facts.snapshot),
        "timestamp": str(facts.timestamp),
        "published": facts.issued,
        "expires": facts.expires,
        "signatures": _NOT_CHECKED,
    }
    rows = [
        (
            one.unit,
            str(one.counter),
            "withdrawn" if one.withdrawn else layout.size(one.bytes),
            one.expires,
        )
        for one in facts.releases
    ]
    heads = ("release", "number", "size", "expires")
    table = layout.table(heads, layout.shortened(rows), right="12")
    return [*layout.pairs(about), "", *table]


def keyring(facts: KeyringFacts) -> list[str]:
    """Return the lines for a folder of keys: a row for each key, its role said once."""
    heads = ("role", "key", "scheme", "where", "signs", "version", "expires")
    rows = [row for role in facts.roles for row in _key_rows(role)]
    return layout.table(heads, layout.shortened(rows), right="5")


def _key_rows(role: RoleFacts) -> Iterator[tuple[str, ...]]:
    signs = f"{role.threshold} of {len(role.keys)}"
    first = (signs, str(role.counter or "-"), role.expires or "-")
    for place, key in enumerate(role.keys):
        ends = ("", "", "") if place else first
        yield "" if place else role.role, key.keyid[:12], key.scheme, key.where, *ends
