"""The layout of a store: where everything lies in its folder.

Rules of this file: paths only, made of checked names and digests; it opens nothing.

::

    lock  state.json  journal.log  journal.old  trust/  part/<hex>
    rel/<hex>/             bundle.da3b and installed.json
    backbones/<hex>/       the artefact
    engines/<hex>/         what was built for that backbone here
    gen/<n>/domains/<name> -> ../../../rel/<hex>
    gen/<n>/backbones/<name> -> ../../../backbones/<hex>
    current -> gen/<n>     previous -> gen/<m>
    domains/<name>/current -> ../../current/domains/<name>, and previous
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.digest import DIGEST_PATTERN
from toolchain.core.errors import UsageError
from toolchain.core.units import Unit

CURRENT, PREVIOUS = "current", "previous"
BUNDLE_NAME, RECORD_NAME = "bundle.da3b", "installed.json"
"""The two files of an installed domain."""
GENERATIONS = "gen"
FOLDERS = ("trust", "part", "rel", "backbones", "engines", GENERATIONS, "domains")
CONTENT = {"domains": "rel", "backbones": "backbones"}
"""The folder that holds the content of a kind of unit."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the store in the folder ``root``."""

    root: Path

    @property
    def lock(self) -> Path:
        """What the one writer holds."""
        return self.root / "lock"

    @property
    def state(self) -> Path:
        """The state: what is to be current, and what was promised."""
        return self.root / "state.json"

    @property
    def journal(self) -> Path:
        """The newer segment of the journal."""
        return self.root / "journal.log"

    @property
    def old_journal(self) -> Path:
        """The segment before it."""
        return self.root / "journal.old"

    @property
    def damaged_journal(self) -> Path:
        """A segment that was set aside, for people."""
        return self.root / "journal.damaged"

    @property
    def trust(self) -> Path:
        """The folder of TUF's cache."""
        return self.root / "trust"

    @property
    def trust_root(self) -> Path:
        """The root metadata that the device was given."""
        return self.trust / "root.json"

    @property
    def parts(self) -> Path:
        """The folder of downloads under way."""
        return self.root / "part"

    def part(self, digest: str) -> Path:
        """A download under way, by the digest of the whole file."""
        return self.parts / hex_of(digest)

    def content(self, unit: str, digest: str) -> Path:
        """The folder of a release's content; ``digest`` is that of its manifest."""
        return self.root / CONTENT[Unit.parse(unit).kind] / hex_of(digest)

    def engines(self, digest: str) -> Path:
        """The folder of the engines built here for the backbone whose manifest has ``digest``."""
        return self.root / "engines" / hex_of(digest)

    def generation(self, number: int) -> Path:
        """The folder of links of the generation ``number``."""
        return self.root / GENERATIONS / str(number)

    def domain(self, name: str) -> Path:
        """The folder that applications know: its ``current`` is the domain as it runs."""
        return self.root / "domains" / name


def hex_of(digest: str) -> str:
    """Return the 64 hex digits of ``digest``. Raises UsageError for what is no digest."""
    if re.fullmatch(DIGEST_PATTERN, digest) is None:
        raise UsageError(
            f"expected a digest `sha256:` and 64 hex digits, got {digest!r:.100}",
            fix="pass the digest of the manifest as it is written",
        )
    return digest.removeprefix("sha256:")


def content_link(unit: str, digest: str) -> str:
    """Return where the link of ``unit`` in a generation leads."""
    return f"../../../{CONTENT[Unit.parse(unit).kind]}/{hex_of(digest)}"
