"""The YAML of recipes: text to plain values and back.

Rules of this file: scalars follow YAML 1.2's core schema (clause 10.3), so ``yes`` and ``on`` are
text and ``1e-4`` is a number; anchors, aliases, tags, duplicate keys, deep nesting and more than
one document are faults; nothing is constructed but dict, list, str, int, float, bool and None.
What the values mean is `spec`'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import yaml

from toolchain.core.errors import Fault

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_NODES = 4_000

# At most 18 digits: such a number fits into 64 bits.
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+()-]+)*")


def parse(data: bytes) -> tuple[object, list[Fault]]:
    """Return the plain value of a YAML document and its faults (value None where it has any).

    Faults of the text itself carry ``line N`` as their path, those of keys the key path.
    """
    if len(data) > MAX_BYTES:
        return None, [Fault("(file)", f"expected at most {MAX_BYTES} bytes, got {len(data)}")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        fault = Fault(
            "(file)",
            f"expected UTF-8 text, got byte {err.start}: {err.reason}",
            "save it as UTF-8; an editor may call UTF-16 'Unicode'",
        )
        return None, [fault]
    try:
        faults = _limits(text)
        node = None if faults else yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as err:
        return None, [_yaml_fault(err)]
    if node is None:
        return None, faults or [Fault("(file)", "expected a recipe, got an empty file")]
    value = _plain(node, "", faults)
    return (None, faults) if faults else (value, [])


def _yaml_fault(err: yaml.YAMLError) -> Fault:
    mark = getattr(err, "problem_mark", None)
    where = f"line {mark.line + 1}" if mark else "(file)"
    problem = getattr(err, "problem", None) or getattr(err, "reason", None) or str(err)
    return Fault(where, f"expected YAML, got: {problem}", "check indentation and quotes")


def _limits(text: str) -> list[Fault]:
    """Walk the event stream, which needs no recursion, before any tree is built."""
    depth = nodes = 0
    # BaseLoader makes no objects and keeps each scalar as text.
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "(file)"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return [Fault(where, "expected no anchors or aliases", "write the value out")]
        if tag := getattr(event, "tag", None):
            return [Fault(where, f"expected no tags, got {tag[:64]}", "remove the tag")]
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            message = f"expected at most {MAX_DEPTH} levels and {MAX_NODES} values"
            return [Fault(where, message, "a recipe is flat")]
    return []


def _plain(node: yaml.Node, path: str, faults: list[Fault]) -> object:
    if isinstance(node, yaml.ScalarNode):
        # A quoted scalar is text, whatever it says.
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{path}[{i}]", faults) for i, item in enumerate(node.value)]
    return _mapping(node, path, faults)


def _mapping(node: yaml.Node, path: str, faults: list[Fault]) -> dict[str, object]:
    out: dict[str, object] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            faults.append(Fault(path or "(top)", f"expected plain keys, got a list on line {line}"))
            continue
        name = name_node.value
        inner = f"{path}.{name}" if path else name
        if name in out:
            faults.append(Fault(inner, f"stands a second time on line {line}", "remove one"))
            continue
        out[name] = _plain(value_node, inner, faults)
    return out


def scalar(text: str) -> object:
    """Return what an unquoted scalar means by YAML 1.2.2, clause 10.3.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _SPECIAL.fullmatch(text):
        # float() knows inf and nan without the dot.
        return float(text.replace(".", "", 1))
    return float(text) if _FLOAT.fullmatch(text) else text


def emit(value: Mapping[str, object], header: str = "") -> str:
    """Return ``value`` as YAML of two levels that `parse` reads back equal.

    ``header`` becomes the comment on top; line breaks and control characters in it are escaped,
    so that it cannot end the comment.
    """
    lines = [f"# {_printable(line)}".rstrip() for line in header.splitlines()]
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            lines.append(f"{name}:")
            lines.extend(f"  {inner}: {_flow(one)}" for inner, one in item.items())
        else:
            lines.append(f"{name}: {_flow(item)}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, str):
        # A JSON string is a double-quoted YAML scalar as well.
        plain = _PLAIN.fullmatch(value) and isinstance(scalar(value), str)
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    return json.dumps(value)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
