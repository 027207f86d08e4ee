"""Typed fields with rules: how data from outside becomes a frozen dataclass.

Rules of this file: a section is a frozen dataclass whose fields are declared with `key`. Reading a
section collects every fault with its key path and never raises. A field without a default is
required; a key without a field is a fault. Nothing here knows YAML, JSON or what a recipe is.
Nothing is converted silently: whole numbers become floats, lists become tuples, tables become
read-only mappings, and that is all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

from toolchain.core.errors import Fault

SectionT = TypeVar("SectionT", bound="Section")
_MOST_STRANGE = 100


class Rule(Protocol):
    """Reads one value: returns it converted, or appends the faults and returns None."""

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the converted value; on a fault append to ``faults`` and return None."""


class Section:
    """Base of every dataclass that `read_section` can build."""

    __slots__: ClassVar[tuple[str, ...]] = ()

    def contradictions(self) -> Iterator[Fault]:
        """Yield faults between fields that are each right alone; paths are field names."""
        return iter(())


def key(rule: Rule, **options: Any) -> Any:
    """Return a dataclass field read by ``rule``; without ``default=`` the key is required."""
    return field(metadata={"rule": rule}, **options)


def rules(section: type[Section]) -> Mapping[str, Rule]:
    """Return the rule of each field of ``section`` that can be read, in declaration order."""
    return _declared(section)[0]  # type: ignore[arg-type]  # mypy: a class is hashable


@cache
def _declared(section: type[Section]) -> tuple[Mapping[str, Rule], tuple[str, ...]]:
    """Return the rules by field, and the fields that have no default."""
    readable = [item for item in fields(section) if "rule" in item.metadata]  # type: ignore[arg-type]  # every Section is a dataclass
    required = (
        item.name
        for item in readable
        if item.default is MISSING and item.default_factory is MISSING
    )
    return MappingProxyType({item.name: item.metadata["rule"] for item in readable}), tuple(
        required
    )


def show(value: object) -> str:
    """Return ``value`` for a message: its kind in the recipe's words, then the value, short."""
    if value is None:
        return "null"
    kinds = {bool: "true/false", int: "whole number", float: "number", str: "text"}
    kinds |= {list: "list", dict: "section"}
    text = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} {text[:57] + '...' * (len(text) > 57)}"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A rule for one plain value: ``expected`` completes the sentence "expected ...".

    ``accepts_all``: whether it takes every value of a list, where one look at all is faster than a
    look at each.
    """

    expected: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    fix: str = ""
    accepts_all: Callable[[Sequence[Any]], bool] | None = None

    def takes(self, values: Sequence[Any]) -> bool:
        """Whether it accepts each of ``values``."""
        every = self.accepts_all
        return every(values) if every else all(map(self.accepts, values))

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the converted value or None with a fault."""
        if self.accepts(value):
            return self.convert(value)
        faults.append(Fault(path, f"expected {self.expected}, got {show(value)}", self.fix))
        return None


def text(expected: str, accepts: Callable[[str], bool], fix: str = "") -> Scalar:
    """Return the rule for a string that ``accepts`` takes."""
    return Scalar(expected, lambda value: isinstance(value, str) and accepts(value), fix=fix)


def matching(pattern: str, expected: str = "") -> Scalar:
    """Return the rule for a string that matches ``pattern`` as a whole."""
    compiled = re.compile(pattern)
    return text(expected or f"`{pattern}`", lambda value: compiled.fullmatch(value) is not None)


def printable(limit: int) -> Scalar:
    """Return the rule for one line of 1 to ``limit`` printable characters, not only spaces."""

    def accepts_all(values: Sequence[object]) -> bool:
        """Whether each value is such a line."""
        # A bundle may hold thousands of class names: they are joined and looked at once.
        lines = [value for value in values if isinstance(value, str)]
        return (
            len(lines) == len(values)
            and max(map(len, lines), default=0) <= limit
            and "".join(lines).isprintable()
            and all(map(str.strip, lines))
        )

    expected = f"text of 1 to {limit} printable characters"
    return Scalar(expected, lambda value: accepts_all([value]), accepts_all=accepts_all)


def whole(low: int, high: int, *, odd: bool = False) -> Scalar:
    """Return the rule for a whole number in [low, high]; true and false are not numbers."""
    return Scalar(
        f"{'an odd' if odd else 'a'} whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high and (not odd or value % 2 == 1),
    )


def number(low: float, high: float, *, above: bool = False) -> Scalar:
    """Return the rule for a finite number in [low, high], or in (low, high] if ``above``."""

    def accepts(value: object) -> bool:
        """Whether the value is a finite number in the interval."""
        if type(value) is not int and type(value) is not float:
            return False
        return math.isfinite(value) and (low < value if above else low <= value) and value <= high

    words = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
    return Scalar(f"a number {words}", accepts, float)


def choice(*known: str) -> Rule:
    """Return the rule for one of the ``known`` words; a near miss is named in the fix."""
    return _OneOf(known)


@dataclass(frozen=True, slots=True)
class _OneOf:
    known: tuple[str, ...]

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the word, or None with a fault that names the nearest one."""
        if isinstance(value, str) and value in self.known:
            return value
        message = f"expected one of {', '.join(self.known)}, got {show(value)}"
        faults.append(Fault(path, message, nearest(value, self.known)))
        return None


@dataclass(frozen=True, slots=True)
class Nullable:
    """A rule that also takes null."""

    rule: Rule

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return None for null, else what the inner rule says."""
        return None if value is None else self.rule.read(path, value, faults)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A rule for a list of ``low`` to ``high`` items; becomes a tuple."""

    item: Rule
    low: int
    high: int

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return a tuple, or None with one fault per bad item (``path[index]``)."""
        if not isinstance(value, list | tuple) or not self.low <= len(value) <= self.high:
            size = str(self.low) if self.low == self.high else f"{self.low} to {self.high}"
            got = f"{len(value)} items" if isinstance(value, list | tuple) else show(value)
            faults.append(Fault(path, f"expected a list of {size} items, got {got}"))
            return None
        if isinstance(self.item, Scalar) and self.item.takes(value):
            return tuple(map(self.item.convert, value))
        return tuple(self.item.read(f"{path}[{i}]", one, faults) for i, one in enumerate(value))


@dataclass(frozen=True, slots=True)
class TableOf:
    """A rule for a table of ``low`` to ``high`` entries; becomes a read-only mapping."""

    name: Scalar
    item: Rule
    low: int
    high: int

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the mapping, or None with one fault per bad key or item (``path.key``)."""
        if not isinstance(value, Mapping) or not self.low <= len(value) <= self.high:
            got = f"{len(value)} entries" if isinstance(value, Mapping) else show(value)
            faults.append(
                Fault(path, f"expected a table of {self.low} to {self.high} entries, got {got}")
            )
            return None
        for name in value:
            self.name.read(f"{path} (key)", name, faults)
        return MappingProxyType(
            {name: self.item.read(f"{path}.{name:.60}", one, faults) for name, one in value.items()}
        )


@dataclass(frozen=True, slots=True)
class SectionOf:
    """A rule for a nested section."""

    section: type[Section]

    def read(self, path: str, value: object, faults: list[Fault]) -> Any:
        """Return the section's dataclass or None with its faults."""
        return read_section(self.section, path, value, faults)


def nearest(name: object, known: Collection[str]) -> str:
    """Return a fix that names the nearest of ``known``, or "" where nothing is near."""
    near = get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def read_section(
    section: type[SectionT], path: str, value: object, faults: list[Fault]
) -> SectionT | None:
    """Build ``section`` from the mapping ``value``; append every fault and return None on any.

    ``path`` is the key path of the mapping itself, "" at the top.
    """
    if not isinstance(value, Mapping):
        faults.append(Fault(path or "(top)", f"expected a section of keys, got {show(value)}"))
        return None
    before = len(faults)
    known = rules(section)
    faults.extend(_stray(known, path, value))
    faults.extend(_missing(section, path, value))
    # Most fields are scalars and right: taking those here saves a key path for each.
    values = {
        name: rule.convert(value[name])
        if isinstance(rule, Scalar) and rule.accepts(value[name])
        else rule.read(join(path, name), value[name], faults)
        for name, rule in known.items()
        if name in value
    }
    if len(faults) > before:
        return None
    built = section(**values)
    # Fields that are each right may still contradict each other; their paths begin at the section.
    faults.extend(Fault(join(path, f.path), f.message, f.fix) for f in built.contradictions())
    return None if len(faults) > before else built


def join(path: str, name: str) -> str:
    """Return the key path of ``name`` inside ``path``."""
    return f"{path}.{name}" if path else name


def unknown_key(section: type[Section], path: str) -> Fault:
    """Return the fault of ``path``, of which ``section`` has no key; the fix names a near one."""
    known = rules(section)
    head, _, rest = path.partition(".")
    near = get_close_matches(head, known, n=1, cutoff=0.6)
    if near and head != near[0]:
        return Fault(
            path, "unknown key", f"did you mean {join(near[0], rest) if rest else near[0]}?"
        )
    return Fault(path, "unknown key", f"known keys: {', '.join(known)}")


def _belongs(name: object, known: Mapping[str, Rule], path: str) -> str:
    for outer, rule in known.items():
        if isinstance(rule, SectionOf) and name in rules(rule.section):
            return f"move it to {join(join(path, outer), str(name))}"
    return nearest(name, known) or f"known keys: {', '.join(known)}"


def _stray(known: Mapping[str, Rule], path: str, value: Mapping[Any, object]) -> Iterator[Fault]:
    strange = [name for name in value if name not in known]
    # A hostile table has a million; to look for what is near takes its time for each.
    for name in strange[:_MOST_STRANGE]:
        yield Fault(join(path, str(name)[:64]), "unknown key", _belongs(name, known, path))
    if (more := len(strange) - _MOST_STRANGE) > 0:
        yield Fault(path or "(top)", f"{more} more unknown keys")


def _missing(section: type[Section], path: str, value: Mapping[Any, object]) -> Iterator[Fault]:
    for name in _declared(section)[1]:  # type: ignore[arg-type]  # mypy: a class is hashable
        if name not in value:
            yield Fault(join(path, name), "missing key", f"add {name}: ...")
