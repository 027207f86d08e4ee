"""Which gates a static graph has resolved: read from the graph itself.

Rules of this file: bytes in, values out; it reads names of nodes and of their tensors, and no
weights. What a manifest says of gates is not asked: the graph is what runs. The linker names what
it draws (:mod:`toolchain.export.graph.names`): the result of a site ``s`` is ``out.s``. Where the
gate decides, an ``If`` gives it. Where the gate is resolved, an ``Add`` gives it, of the adaptor's
correction and of ``block.s``, the block's own output; or of the block's input, if the block is
left out. Source: onnx.proto, ModelProto, GraphProto and NodeProto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toolchain.core.errors import BundleError
from toolchain.core.wire import Value, WireReader

_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4
_MOST_FIELDS = 1 << 22


def resolved_gates(model: bytes, gates: Sequence[str], what: str) -> dict[str, bool]:
    """Return the state of each of ``gates`` that the ONNX file ``model`` has resolved.

    ``gates``: sites. True: the block is always computed; False: it is left out. A gate that decides
    when the graph runs is not among them. Raises BundleError for bytes that are no model, and for a
    site that the graph does not have.
    """
    try:
        results = dict(_results(WireReader(_MOST_FIELDS), memoryview(model)))
    except ValueError as err:
        raise _refused(f"{what}: expected an ONNX model, got {err}") from err
    states = {}
    for site in gates:
        operator, source = results.get(f"out.{site}".encode(), (b"", b""))
        if operator == b"Add":
            states[site] = source == f"block.{site}".encode()
        elif operator != b"If":
            raise _refused(f"{what}: expected a node that gives out.{site}, got none")
    return states


def _results(reader: WireReader, model: memoryview) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
    """Yield each tensor that an outer node makes, with its operator and the first input."""
    for node in _messages(reader, _messages(reader, [model], _GRAPH), _NODE):
        texts: dict[int, list[bytes]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: []}
        for number, _, value in reader.fields(node):
            if number in texts:
                texts[number].append(bytes(_view(value)))
        first = next(iter(texts[_INPUT]), b"")
        for output in texts[_OUTPUT]:
            yield output, (b"".join(texts[_OPERATOR]), first)


def _messages(reader: WireReader, outer: Iterable[memoryview], field: int) -> Iterator[memoryview]:
    """Yield the messages in the field ``field`` of each message of ``outer``."""
    for message in outer:
        for number, _, value in reader.fields(message):
            if number == field:
                yield _view(value)


def _view(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message stands")  # noqa: TRY004  # of a file
    return value


def _refused(message: str) -> BundleError:
    return BundleError(message, fix="export the domain again")
