"""A unit: what has a history of releases, its role in TUF, and where its files lie on a site.

Rules of this file: names and paths only; it opens nothing and knows no signature. A unit is a
domain or a backbone. Its role, its target paths and its addresses follow from its name alone, so
that no metadata can point elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from toolchain.core.errors import UsageError
from toolchain.core.fields import Scalar
from toolchain.core.words import DOMAIN, IDENTIFIER, TARGET

DOMAINS, BACKBONES = "domains", "backbones"
_ROLE_OF_KIND = {DOMAINS: "domain-", BACKBONES: "backbone-"}
_RULES: dict[str, Scalar] = {DOMAINS: DOMAIN, BACKBONES: IDENTIFIER}
# python-tuf keeps a role in a file of its quoted name; file systems allow 255 bytes.
_LONGEST_ROLE = 200
METADATA, TARGETS, BLOBS = "metadata", "targets", "blobs/sha256"


@dataclass(frozen=True, order=True)
class Unit:
    """A domain or a backbone; ``kind`` is ``domains`` or ``backbones``.

    Raises UsageError for another kind, and for a name that cannot be one.
    """

    kind: str
    name: str

    def __post_init__(self) -> None:
        rule = _RULES.get(self.kind)
        if rule is None:
            raise UsageError(
                f"expected {DOMAINS}/NAME or {BACKBONES}/NAME, got the kind {self.kind!r:.80}",
                fix=f"write {DOMAINS}/cars, say",
            )
        if not rule.accepts(self.name):
            raise UsageError(
                f"{self.kind}: expected {rule.expected}, got {self.name!r:.80}",
                fix="choose another name",
            )
        if len(quote(self.role, "")) > _LONGEST_ROLE:
            raise UsageError(
                f"{self}: expected a name of at most {_LONGEST_ROLE} bytes once it is quoted for "
                f"an address (RFC 3986), got {len(quote(self.role, ''))}",
                fix="choose a shorter name; letters outside of ASCII count six to nine bytes each",
            )

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

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
        """Name of the file that every release of the unit has: ``bundle.json``."""
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

    @classmethod
    def parse(cls, words: str) -> Unit:
        """Return the unit that ``domains/cars`` names. Raises UsageError."""
        kind, _, name = words.partition("/")
        return cls(kind=kind, name=name)

    @classmethod
    def of_role(cls, role: str) -> Unit:
        """Return the unit of a delegated role. Raises UsageError for a role of no unit."""
        for kind, prefix in _ROLE_OF_KIND.items():
            if role.startswith(prefix):
                return cls(kind=kind, name=role.removeprefix(prefix))
        raise UsageError(
            f"expected a role of a domain or a backbone, got {role!r:.80}",
            fix="such a role is called domain-NAME or backbone-NAME",
        )


def named_unit(domain: str | None, backbone: str | None) -> Unit:
    """Return the unit of a name that is given as one of the two. Raises UsageError."""
    names = [(DOMAINS, domain), (BACKBONES, backbone)]
    given = [Unit(kind=kind, name=name) for kind, name in names if name is not None]
    if len(given) != 1:
        raise UsageError(
            f"expected one domain or one backbone, got {len(given)}",
            fix="name it: --domain NAME, or --backbone NAME",
        )
    return given[0]


def kit_file(target: str) -> str:
    """Return the name under which a backbone's release lists the kit of a board."""
    return f"kit-{target}.json"


def manifest_place(unit: Unit, name: str, digest: str) -> str:
    """Return where a manifest lies below a site, as TUF's consistent snapshots have it.

    ``digest`` is ``sha256:<hex>``. For an address, pass it through ``urllib.parse.quote``.
    """
    return f"{TARGETS}/{unit}/{digest.removeprefix('sha256:')}.{name}"


def blob_place(digest: str) -> str:
    """Return where a file that a manifest lists lies below a site."""
    return f"{BLOBS}/{digest.removeprefix('sha256:')}"
