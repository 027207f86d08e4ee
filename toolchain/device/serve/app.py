"""The protocol over HTTP: routes, who may send requests, and the status of each fault.

Rules of this file: a WSGI application (PEP 3333) that works under any WSGI server, with one table
of routes. Whatever may take long or much memory (reading a body, inferring, loading) is admitted
first, so health and metadata answer while everything else is refused. Every answer is JSON, and
every fault is ``{"error": "..."}``. A fault of the server itself says no more than that.

A web page must not reach a server on its visitor's machine. Where the server listens on a loopback
address, it refuses a request whose Host names another one (DNS rebinding). It also refuses any
request that a browser sent for a page of another origin. There are no CORS headers.

Source: Open Inference Protocol v2, "HTTP/REST"; Triton's extensions as named in each file.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain import __version__
from toolchain.core.errors import DataError
from toolchain.device.serve import domains, protocol
from toolchain.device.serve.admission import Admission
from toolchain.device.serve.call import HttpRequest, guard
from toolchain.device.serve.faults import RefusedError, refusal
from toolchain.device.serve.limits import Limits
from toolchain.device.serve.repository import NONE, Repository
from toolchain.device.serve.statistics import Statistics

if TYPE_CHECKING:
    from toolchain.device.runtime.answers import Domain
    from toolchain.device.runtime.runner import Runner

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
# Loads that run at once, so that none waits for a bundle that is slow to try, and those in line.
LOADS = 4
LOADS_WAITING = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is sent."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class App:
    """The WSGI application over ``runner``.

    ``repository``: the folder of bundles that may be loaded, or None. ``refused``: what was not
    loaded before, and why. ``control``: whether clients may load and unload. ``loopback``: it
    listens on a loopback address, so another Host is refused.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        repository: Path | None,
        refused: Mapping[str, str] = NONE,
        control: bool,
        loopback: bool,
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._repository = Repository(runner, repository, refused)
        self._statistics = Statistics()
        self._control = control
        self._loopback = loopback
        self.inferring = Admission(limits.concurrent, limits.waiting, limits.time_s)
        self._workers = ThreadPoolExecutor(limits.concurrent, "da3-infer")
        self.loading = Admission(LOADS, LOADS_WAITING, limits.time_s)

    def close(self) -> None:
        """Stop being ready and refuse new work; admitted requests go on."""
        self.inferring.close()
        self.loading.close()

    def __call__(
        self, environ: Mapping[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request."""
        try:
            call = HttpRequest(environ, self._limits.body_bytes)
            guard(call, loopback=self._loopback)
            reply = self._dispatch(call)
        # Every error ends here; one that the table does not know becomes a 500.
        except Exception as err:
            reply = _refused(err)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(reply.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **reply.headers,
        }
        start_response(f"{reply.status.value} {reply.status.phrase}", list(headers.items()))
        # The head is a GET's, whole (RFC 9110, 9.3.2); a body would be read as the next answer.
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]

    def _dispatch(self, call: HttpRequest) -> Reply:
        routes = list(_matches(call.segments))
        if not routes:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such resource")
        sought = "GET" if call.method == "HEAD" else call.method
        for method, handler, names in routes:
            if method == sought:
                # A GET says all that it asks in its path.
                return handler(self, **names) if method == "GET" else handler(self, call, **names)
        allowed = ", ".join(sorted({method for method, _, _ in routes}))
        raise RefusedError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"expected {allowed}, got {call.method:.20}",
            {"Allow": allowed},
        )

    # -- health and metadata ---------------------------------------------------------------------

    def _live(self) -> Reply:
        return _json({"live": True})

    def _ready(self) -> Reply:
        if self.inferring.open:
            failed = self._repository.failed()
            return _json({"ready": True, "not_loaded": failed} if failed else {"ready": True})
        stopping = {"ready": False, "error": "the server is stopping"}
        return _json(stopping, HTTPStatus.SERVICE_UNAVAILABLE)

    def _server(self) -> Reply:
        return _json({"name": "da3", "version": __version__, "extensions": EXTENSIONS})

    def _model_ready(self, model: str, version: str | None = None) -> Reply:
        domain = self._find(model, version)
        return _json({"name": domain.name, "ready": True})

    def _metadata(self, model: str, version: str | None = None) -> Reply:
        return _json(domains.metadata(self._find(model, version)))

    def _config(self, model: str, version: str | None = None) -> Reply:
        return _json(domains.config(self._find(model, version), self._runner.facts.max_batch))

    def _model_statistics(self, model: str, version: str | None = None) -> Reply:
        return self._stats([self._find(model, version)])

    def _all_statistics(self) -> Reply:
        return self._stats(self._runner.domains.values())

    def _find(self, model: str, version: str | None) -> Domain:
        return domains.find(self._runner, model, version)

    def _stats(self, loaded: Iterable[Domain]) -> Reply:
        stats = [self._statistics.of(one.name, domains.version(one)) for one in loaded]
        return _json({"model_stats": stats})

    # -- work ------------------------------------------------------------------------------------

    def _infer(self, call: HttpRequest, model: str, version: str | None = None) -> Reply:
        begun = time.monotonic()
        self._find(model, version)
        with self._counting_failure(model), self.inferring.turn() as waited_s:
            request = protocol.decode(call.body(), call.header(protocol.HEADER), self._limits)
            limit_s = min(self._limits.time_s, request.timeout_s or math.inf)
            left_s = limit_s - (time.monotonic() - begun)
            # On few threads: each that once decoded a large picture keeps that memory for the next.
            response, outcome = self._workers.submit(
                domains.predict, self._runner, model, version, request, left_s
            ).result()
            body, length = protocol.encode(response)
        self._statistics.succeeded(
            model,
            pictures=len(outcome.logits),
            queue_s=waited_s,
            model_s=outcome.ms / 1000,
            total_s=time.monotonic() - begun,
        )
        if length is None:
            return Reply(HTTPStatus.OK, body)
        headers = {"Content-Type": "application/octet-stream", protocol.HEADER: str(length)}
        return Reply(HTTPStatus.OK, body, headers)

    def _index(self, call: HttpRequest) -> Reply:
        ready = self._document(call, "ready").get("ready", False)
        if type(ready) is not bool:
            raise DataError("ready: expected true or false, got another value")
        return _json(self._repository.index(ready_only=ready))

    def _load(self, call: HttpRequest, model: str) -> Reply:
        self._require_control()
        parameters = self._parameters(call)
        with self.loading.turn():
            self._repository.load(model, parameters)
        return _json({})

    def _unload(self, call: HttpRequest, model: str) -> Reply:
        self._require_control()
        parameters = self._parameters(call)
        with self.loading.turn():
            self._repository.unload(model, parameters)
            self._statistics.forget(model)
        return _json({})

    def _require_control(self) -> None:
        # Triton's --model-control-mode=none, its default, refuses both as well.
        if not self._control:
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "this server's models stay as they are (no --control)"
            )

    def _parameters(self, call: HttpRequest) -> dict[str, Any]:
        parameters = self._document(call, "parameters").get("parameters", {})
        if not isinstance(parameters, dict):
            raise DataError("expected parameters as a JSON object, got another value")
        return parameters

    def _document(self, call: HttpRequest, known: str) -> dict[str, Any]:
        """Return the small JSON object of a request whose body may be missing."""
        body = call.body(limit_bytes=_SMALL, needed=False)
        value = protocol.read_json(body, _SMALL) if body else {}
        if set(value) - {known}:
            raise DataError(f"expected no key but {known}, got others")
        return value

    @contextmanager
    def _counting_failure(self, model: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        except Exception:
            self._statistics.failed(model, time.monotonic() - begun)
            raise


_SMALL = 64 * 1024
_Handler = Callable[..., Reply]
_MODEL = ("v2", "models", "{model}")
_VERSION = (*_MODEL, "versions", "{version}")
_ROUTES: tuple[tuple[str, tuple[str, ...], _Handler], ...] = (
    ("GET", ("v2",), App._server),
    ("GET", ("v2", "health", "live"), App._live),
    ("GET", ("v2", "health", "ready"), App._ready),
    # Before a model of that name, as Triton has it.
    ("GET", ("v2", "models", "stats"), App._all_statistics),
    *(
        (method, (*prefix, *rest), handler)
        for prefix in (_MODEL, _VERSION)
        for method, rest, handler in (
            ("GET", (), App._metadata),
            ("GET", ("ready",), App._model_ready),
            ("GET", ("config",), App._config),
            ("GET", ("stats",), App._model_statistics),
            ("POST", ("infer",), App._infer),
        )
    ),
    ("POST", ("v2", "repository", "index"), App._index),
    ("POST", ("v2", "repository", "models", "{model}", "load"), App._load),
    ("POST", ("v2", "repository", "models", "{model}", "unload"), App._unload),
)


def _matches(segments: tuple[str, ...]) -> Iterator[tuple[str, _Handler, dict[str, str]]]:
    """Yield method, handler and names of each route that ``segments`` fit."""
    for method, pattern, handler in _ROUTES:
        if len(pattern) == len(segments):
            pairs = list(zip(pattern, segments, strict=True))
            if all(part == segment or part[0] == "{" for part, segment in pairs):
                names = {part[1:-1]: segment for part, segment in pairs if part[0] == "{"}
                yield method, handler, names


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(status, protocol.write_json(value))


def _refused(err: Exception) -> Reply:
    """Return the answer for an error; what the client does not get to read goes to the log."""
    reason = refusal(err)
    if reason.status is HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("a request failed", exc_info=err)
    elif reason.hidden:
        _log.warning("a request was refused: %s", err)
    return Reply(reason.status, protocol.write_json({"error": reason.message}), reason.headers)
