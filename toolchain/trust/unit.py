"""Where the files of a unit lie on a site.

Rules of this file: paths only; it opens nothing. They follow from the unit's name and from digests.
"""

from __future__ import annotations

from toolchain.core.errors import UsageError
from toolchain.core.units import BACKBONES, DOMAINS, Unit

METADATA, TARGETS, BLOBS = "metadata", "targets", "blobs/sha256"


def named_unit(domain: str | None, backbone: str | None) -> Unit:
    """Return the unit of a name that is given as one of the two. Raises UsageError."""
    names = [(DOMAINS, domain), (BACKBONES, backbone)]
    given = [Unit(kind, name) for kind, name in names if name is not None]
    if len(given) != 1:
        raise UsageError(
            f"expected one domain or one backbone, got {len(given)}",
            fix="name it: --domain NAME, or --backbone NAME",
        )
    return given[0]


def manifest_place(unit: Unit, name: str, digest: str) -> str:
    """Return where a manifest lies below a site, as TUF's consistent snapshots have it.

    ``digest`` is ``sha256:<hex>``. For an address, pass it through ``urllib.parse.quote``.
    """
    return f"{TARGETS}/{unit}/{digest.removeprefix('sha256:')}.{name}"


def blob_place(digest: str) -> str:
    """Return where a file that a manifest lists lies below a site."""
    return f"{BLOBS}/{digest.removeprefix('sha256:')}"
