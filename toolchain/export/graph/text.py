"""Text in an ONNX file: names and operator types are UTF-8, or the file is refused.

Rules of this file: protobuf alone, so that a file can be looked at where onnx-ir is not installed.
Protobuf's parser hands text that is not UTF-8 over as bytes. Code that reads such a name would fail
much later, and far from the cause. Source: ONNX IR specification, "Names Within a Graph";
protobuf's ``string`` is UTF-8.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message


def check_text(message: Message) -> None:
    """Raise ValueError for a text in ``message``, at any depth, that is not UTF-8."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        for field, value in part.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting.extend([value] if isinstance(value, Message) else value)
            elif field.type == field.TYPE_STRING:
                _check(f"{part.DESCRIPTOR.name}.{field.name}", value)


def _check(name: str, value: Any) -> None:
    for text in [value] if isinstance(value, str | bytes) else value:
        if isinstance(text, bytes):
            raise ValueError(f"expected UTF-8 in {name}, got {text[:80]!r}")  # noqa: TRY004
