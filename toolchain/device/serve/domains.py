"""A loaded domain as a model of the protocol: what it takes, what it gives, and asking it.

Rules of this file: one input, ``image``, in three forms, and four outputs, all computed from one
run. A model's version is the first twelve digits of its bundle's digest, so an answer says which
release gave it. Preprocessing, labels and logits of one answer belong to one release, also while
the domain is being replaced.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.core.arrays import Array
from toolchain.core.errors import DataError, TimeLimitError, UnknownNameError
from toolchain.device.runtime.answers import Domain, Outcome, probabilities
from toolchain.device.serve.faults import overloaded
from toolchain.device.serve.protocol import Request, RequestedOutput, Response
from toolchain.device.serve.tensors import NamedTensor, texts

if TYPE_CHECKING:
    from toolchain.device.runtime.runner import Runner

PLATFORM = "da3_onnxruntime"
_TRIES = 3


def version(domain: Domain) -> str:
    """Return the version that the protocol shows for a domain, 12 hex digits."""
    return domain.release.partition(":")[2][:12]


def find(runner: Runner, model: str, release: str | None) -> Domain:
    """Return the loaded domain ``model``, of version ``release`` if one is named.

    Raises UnknownNameError for both.
    """
    domains = runner.domains
    if model not in domains:
        raise UnknownNameError("model", model, domains)
    if release is not None and release != version(domains[model]):
        raise UnknownNameError(f"version of {model!r}", release, [version(domains[model])])
    return domains[model]


def metadata(domain: Domain) -> dict[str, Any]:
    """Return the protocol's model metadata; -1 stands for the batch."""
    return {
        "name": domain.name,
        "versions": [version(domain)],
        "platform": PLATFORM,
        "inputs": [_described("image", "FP32", [-1, *_image(domain)])],
        "outputs": [
            _described(name, datatype, [-1, *shape])
            for name, (datatype, shape) in _outputs(domain).items()
        ],
    }


def config(domain: Domain, max_batch: int) -> dict[str, Any]:
    """Return Triton's model configuration, where a shape leaves out the batch.

    Its ``parameters`` name the classes and the gated blocks in the order of the outputs' columns,
    each as a JSON list in a string, the one type that parameters have there.
    """
    outputs = _outputs(domain).items()
    return {
        "name": domain.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": max_batch,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": _image(domain)}],
        "output": [
            # Triton's name for BYTES in a configuration.
            {"name": name, "data_type": f"TYPE_{kind}".replace("BYTES", "STRING"), "dims": shape}
            for name, (kind, shape) in outputs
        ],
        "parameters": {
            "classes": {"string_value": json.dumps(domain.classes)},
            "gates": {"string_value": json.dumps(domain.gates)},
        },
    }


def predict(
    runner: Runner, model: str, release: str | None, request: Request, limit_s: float
) -> tuple[Response, Outcome]:
    """Answer ``request`` within ``limit_s`` seconds.

    Raises DataError for inputs and outputs that the model has not, UnknownNameError, and
    TimeLimitError; RefusedError (503) where the domain is replaced time and again meanwhile.
    """
    deadline = time.monotonic() + limit_s
    for _ in range(_TRIES):
        domain = find(runner, model, release)
        outputs = _requested_outputs(request, domain)
        tensor = _tensor(runner, domain, request, deadline)
        outcome = runner.infer(tensor, domain.name, time_limit_s=_left(deadline))
        # Another release may have come between looking up and running; its labels are others.
        if outcome.release == domain.release:
            answers = tuple((_answer(outcome, domain, one), one) for one in outputs)
            facts = {"ms": round(outcome.ms, 3)}
            return Response(domain.name, version(domain), request.id, answers, facts), outcome
    raise overloaded(f"{model!r} is being replaced; send the request again")


def _image(domain: Domain) -> list[int]:
    return [3, domain.preprocess.size, domain.preprocess.size]


def _outputs(domain: Domain) -> dict[str, tuple[str, list[int]]]:
    """Datatype and shape of each output, without the batch."""
    classes = len(domain.classes)
    return {
        "logits": ("FP32", [classes]),
        "probabilities": ("FP32", [classes]),
        "label": ("BYTES", []),
        "gates": ("BOOL", [len(domain.gates)]),
    }


def _described(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeLimitError("the request's time was over before the model ran")
    return left


def _tensor(runner: Runner, domain: Domain, request: Request, deadline: float) -> Array:
    """Return what the model sees of the request's one input."""
    names = [tensor.name for tensor in request.inputs]
    if names != ["image"]:
        raise DataError(f"expected the input image, got {', '.join(names)[:200]}")
    image = request.inputs[0]
    match image.datatype:
        case "FP32":
            return image.array
        case "UINT8":
            return runner.prepare(image.array, domain.name)
        case "BYTES" if image.array.ndim == 1:
            return _decoded(runner, domain, image.array, deadline)
    raise DataError(
        "image: expected FP32 [N, 3, S, S], UINT8 [N, H, W, 3] or BYTES [N], "
        f"got {image.datatype} {list(image.array.shape)}"
    )


def _decoded(runner: Runner, domain: Domain, files: Array, deadline: float) -> Array:
    """Decode one picture after the other, so that only one is in memory at its full size."""
    if len(files) > runner.facts.max_batch:
        raise DataError(
            f"expected at most {runner.facts.max_batch} pictures at once, got {len(files)}"
        )
    tensors = []
    for place, data in enumerate(files):
        _left(deadline)
        try:
            tensors.append(runner.prepare([bytes(data)], domain.name))
        except DataError as err:
            # The runner saw a batch of one, whose first picture failed.
            fault = err.message.removeprefix("picture 0: ")
            raise DataError(f"image {place}: {fault}", fix=err.fix) from err
    return np.concatenate(tensors)


def _requested_outputs(request: Request, domain: Domain) -> tuple[RequestedOutput, ...]:
    """Return the requested outputs, or all; wrong ones are refused before anything runs."""
    known = _outputs(domain)
    for one in request.outputs:
        if one.name not in known:
            raise DataError(f"expected outputs of {', '.join(known)}, got {one.name!r}")
        if one.classes and one.name not in ("logits", "probabilities"):
            raise DataError(f"{one.name}: expected logits or probabilities for a classification")
    return request.outputs or tuple(RequestedOutput(name, request.binary) for name in known)


def _answer(outcome: Outcome, domain: Domain, output: RequestedOutput) -> NamedTensor:
    values = _values(output.name, outcome, domain)
    if output.classes:
        return NamedTensor(output.name, "BYTES", _ranked(values, domain, output.classes))
    return NamedTensor(output.name, _outputs(domain)[output.name][0], values)


def _values(name: str, outcome: Outcome, domain: Domain) -> Array:
    match name:
        case "logits":
            return outcome.logits
        case "probabilities":
            return probabilities(outcome.logits)
        case "label":
            best = outcome.logits.argmax(axis=1)
            return texts([domain.classes[index] for index in best], best.shape)
        case _:
            return outcome.gates


def _ranked(values: Array, domain: Domain, count: int) -> Array:
    """Return the best ``count`` classes of each row as "value:index:label" (Triton)."""
    count = min(count, values.shape[1])
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    lines = [
        f"{row[index]:f}:{index}:{domain.classes[index]}"
        for row, places in zip(values, best, strict=True)
        for index in places
    ]
    return texts(lines, best.shape)
