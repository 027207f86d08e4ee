"""Units: what has a history of releases, a domain or a backbone; and which backbone it is.

Rules of this file: names only. A unit's text is ``domains/cars``, say, the same
in signed metadata, in a store and in a message. A name holds no slash, so a text is read one way.
Its role in The Update Framework (TUF), and what it may sign, follow from its name alone, so that no
metadata can point elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from toolchain.core.errors import UsageError
from toolchain.core.fields import Section, key, text
from toolchain.core.words import DIGEST, DOMAIN, IDENTIFIER, TARGET

DOMAINS, BACKBONES = "domains", "backbones"
_NAMES = {DOMAINS: DOMAIN, BACKBONES: IDENTIFIER}
_ROLE_OF_KIND = {DOMAINS: "domain-", BACKBONES: "backbone-"}
# python-tuf keeps a role in a file of its quoted name; file systems allow 255 bytes.
_LONGEST_ROLE = 200


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """A domain or a backbone; ``kind`` is ``domains`` or ``backbones``.

    Raises UsageError for another kind, and for a name that cannot be one.
    """

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in _NAMES:
            raise UsageError(
                f"expected {DOMAINS}/NAME or {BACKBONES}/NAME, got the kind {self.kind!r:.80}",
                fix=f"write {DOMAINS}/cars, say",
            )
        if not _NAMES[self.kind].accepts(self.name):
            raise UsageError(
                f"expected the name of one of the {self.kind}, got {self.name!r:.80}",
                fix=f"use {_NAMES[self.kind].expected}",
            )
        if (length := _quoted_bytes(self.role)) > _LONGEST_ROLE:
            raise UsageError(
                f"{self}: expected a name of at most {_LONGEST_ROLE} bytes once it is quoted for "
                f"an address (RFC 3986), got {length}",
                fix="choose a shorter name; letters outside of ASCII count six to nine bytes each",
            )

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, value: str) -> Unit:
        """Return the unit whose text is ``value``. Raises UsageError for another text."""
        kind, _, name = value.partition("/")
        return cls(kind, name)

    @classmethod
    def of_role(cls, role: str) -> Unit:
        """Return the unit of a delegated role. Raises UsageError for a role of no unit."""
        for kind, prefix in _ROLE_OF_KIND.items():
            if role.startswith(prefix):
                return cls(kind, role.removeprefix(prefix))
        raise UsageError(
            f"expected a role of a domain or a backbone, got {role!r:.80}",
            fix="such a role is called domain-NAME or backbone-NAME",
        )

    @property
    def role(self) -> str:
        """Name of the unit's delegated role; no two units share one."""
        return _ROLE_OF_KIND[self.kind] + self.name

    @property
    def paths(self) -> str:
        """The pattern of the target paths that the role may sign (TUF 4.5, ``paths``)."""
        return f"{self}/*"

    @property
    def manifest(self) -> str:
        """Name of the file that every release of the unit has: ``bundle.json``, say."""
        return "bundle.json" if self.kind == DOMAINS else "backbone.json"

    def may_have(self, name: str) -> bool:
        """Whether a release may list the file ``name``: its manifest, or a kit of a backbone."""
        if name == self.manifest:
            return True
        target = name.removeprefix("kit-").removesuffix(".json")
        is_kit = name == kit_file(target) and TARGET.accepts(target)
        return self.kind == BACKBONES and is_kit

    def target(self, name: str) -> str:
        """Return the TUF target path of the file ``name``."""
        return f"{self}/{name}"


class _Named(Protocol):
    """What names a backbone: a manifest, or a reference to one."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def weights_digest(self) -> str:
        """Of the trained weights."""

    @property
    def graph_digest(self) -> str:
        """Of the exported graph and weights."""


@dataclass(frozen=True, slots=True)
class BackboneId(Section):
    """Which backbone: its name for people, and the two digests that decide."""

    name: str = key(IDENTIFIER)
    weights_digest: str = key(DIGEST)
    graph_digest: str = key(DIGEST)

    @staticmethod
    def of(one: _Named) -> BackboneId:
        """Return which backbone a manifest is of, or a reference means."""
        return BackboneId(one.name, one.weights_digest, one.graph_digest)

    @property
    def digests(self) -> tuple[str, str]:
        """What decides whether two are the same."""
        return self.weights_digest, self.graph_digest


def is_backbone(unit: str) -> bool:
    """Return whether the unit whose text is ``unit`` is a backbone. Raises UsageError for none."""
    return Unit.parse(unit).kind == BACKBONES


def kit_file(target: str) -> str:
    """Return the name under which a backbone's release lists the kit of a board."""
    return f"kit-{target}.json"


def is_unit(value: str) -> bool:
    """Return whether ``value`` is the text of a unit."""
    try:
        return str(Unit.parse(value)) == value
    except UsageError:
        return False


def _quoted_bytes(role: str) -> int:
    return len(quote(role, ""))


UNIT = text("`domains/` or `backbones/` and a name", is_unit)
