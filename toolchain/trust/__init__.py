"""Trust: who signed a release, in which order, and until when; The Update Framework (TUF).

Rules of this room: above core, pictures and bundle; no framework, and nothing of the device.
python-tuf does TUF's work as it is. What it leaves to its user is closed here: floors, a clock that
may be wrong, one delegator for each role, sizes. ``client`` is what a device runs; it needs no
`cryptography` for Ed25519 keys. ``ceremonies``, ``signing`` and ``site`` are what people run, and
need the extra ``sign``. Importing this package loads none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily

if TYPE_CHECKING:
    from toolchain.core.units import BackboneId, Unit
    from toolchain.trust.assignment import Assignment, read_assignment, sign_assignment
    from toolchain.trust.ceremonies import add, init, renew, revoke, rotate
    from toolchain.trust.checks import NO_FLOORS, Floors
    from toolchain.trust.client import Trusted, refresh
    from toolchain.trust.facts import MetadataFacts, SiteFacts, describe, describe_site
    from toolchain.trust.keyring import KeyFacts, KeyringFacts, RoleFacts, show
    from toolchain.trust.keys import Passphrase, passphrase_from
    from toolchain.trust.release import SignedFile, SignedRelease, check_manifest
    from toolchain.trust.signing import Signing, sign
    from toolchain.trust.site import Published, publish
    from toolchain.trust.unit import blob_place, manifest_place, named_unit

__all__ = [
    "NO_FLOORS",
    "Assignment",
    "BackboneId",
    "Floors",
    "KeyFacts",
    "KeyringFacts",
    "MetadataFacts",
    "Passphrase",
    "Published",
    "RoleFacts",
    "SignedFile",
    "SignedRelease",
    "Signing",
    "SiteFacts",
    "Trusted",
    "Unit",
    "add",
    "blob_place",
    "check_manifest",
    "describe",
    "describe_site",
    "init",
    "manifest_place",
    "named_unit",
    "passphrase_from",
    "publish",
    "read_assignment",
    "refresh",
    "renew",
    "revoke",
    "rotate",
    "show",
    "sign",
    "sign_assignment",
]

__getattr__ = lazily(
    __name__,
    {
        "assignment": ("Assignment", "read_assignment", "sign_assignment"),
        "facts": ("MetadataFacts", "SiteFacts", "describe", "describe_site"),
        "unit": (
            "Unit",
            "blob_place",
            "manifest_place",
            "named_unit",
        ),
        "release": (
            "BackboneId",
            "SignedFile",
            "SignedRelease",
            "check_manifest",
        ),
        "keys": (
            "Passphrase",
            "passphrase_from",
        ),
        "keyring": (
            "KeyFacts",
            "KeyringFacts",
            "RoleFacts",
            "show",
        ),
        "ceremonies": (
            "add",
            "init",
            "renew",
            "revoke",
            "rotate",
        ),
        "signing": (
            "Signing",
            "sign",
        ),
        "site": (
            "Published",
            "publish",
        ),
        "checks": (
            "Floors",
            "NO_FLOORS",
        ),
        "client": (
            "Trusted",
            "refresh",
        ),
    },
)
