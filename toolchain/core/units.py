"""Units: what has a history of releases, a domain or a backbone.

Rules of this file: values only. A unit's text is ``domains/cars`` or ``backbones/resnet20``, the
same in signed metadata, in a store and in a message. A name holds no slash, so a text means one
unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolchain.core.errors import UsageError
from toolchain.core.fields import text
from toolchain.core.words import DOMAIN, IDENTIFIER

Kind = Literal["domains", "backbones"]
_NAMES = {"domains": DOMAIN, "backbones": IDENTIFIER}


@dataclass(frozen=True, slots=True)
class Unit:
    """A domain or a backbone by its name. Raises UsageError for a name that it cannot have."""

    kind: Kind
    name: str

    def __post_init__(self) -> None:
        if self.kind not in _NAMES:
            kinds = ", ".join(get_args(Kind))
            raise UsageError(f"expected a unit of {kinds}, got {self.kind!r:.80}", fix="name one")
        if not _NAMES[self.kind].accepts(self.name):
            raise UsageError(
                f"expected the name of one of the {self.kind}, got {self.name!r:.80}",
                fix=f"use {_NAMES[self.kind].expected}",
            )

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, value: str) -> Unit:
        """Return the unit whose text is ``value``. Raises UsageError for another text."""
        kind, slash, name = value.partition("/")
        if not slash or not is_unit(value):
            raise UsageError(
                f"expected a unit, got {value!r:.80}",
                fix="write domains/NAME or backbones/NAME",
            )
        return cls(kind, name)  # type: ignore[arg-type]  # is_unit has looked at it


def is_unit(value: str) -> bool:
    """Return whether ``value`` is the text of a unit."""
    kind, slash, name = value.partition("/")
    return slash == "/" and kind in _NAMES and _NAMES[kind].accepts(name)


UNIT = text("`domains/` or `backbones/` and a name", is_unit)
