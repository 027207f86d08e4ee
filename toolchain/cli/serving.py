"""``da3 run --serve``: its options, what it loads, and a server that a signal ends in order."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from toolchain.cli.show.answers import complain_of
from toolchain.cli.show.layout import clean, some
from toolchain.cli.show.output import emit
from toolchain.core.errors import BackboneMismatchError, Da3Error, SessionLimitError
from toolchain.core.files import MIB

if TYPE_CHECKING:
    from toolchain.device import Runner
    from toolchain.device.runtime.backbone_session import Cost
    from toolchain.device.store.dist import BundleNeeds


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--serve``, passed as ``port``, and its options, passed as ``serving``.

    ``serving`` holds only the options that the user set: ``host``, ``control``, and fields of
    ``toolchain.device.serve.Limits``.
    """

    @click.option("--serve", "port", type=click.IntRange(0, 65535), metavar="PORT", help=_PORT)
    @click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]")
    @click.option(
        "--max-body",
        type=click.IntRange(1, 4096),
        metavar="MIB",
        help="Largest request, in MiB.  [default: 64]",
    )
    @click.option(
        "--concurrent",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Requests that run at once.  [default: 2]",
    )
    @click.option(
        "--waiting",
        type=click.IntRange(0, 4096),
        metavar="N",
        help="Requests that wait behind them; further ones get 503.  [default: 16]",
    )
    @click.option("--control", is_flag=True, help="Let clients load and unload bundles of DIST.")
    @functools.wraps(command)
    def collecting(
        *args: Any,
        host: str | None,
        max_body: int | None,
        concurrent: int | None,
        waiting: int | None,
        control: bool,
        **rest: Any,
    ) -> Any:
        values = {
            "host": host,
            "body_bytes": None if max_body is None else max_body * MIB,
            "concurrent": concurrent,
            "waiting": waiting,
            "control": control or None,
        }
        serving = {name: value for name, value in values.items() if value is not None}
        return command(*args, serving=serving, **rest)

    return collecting


_EXPOSED = (
    "warning: {url} is no address of this machine alone: whoever reaches it may send pictures, "
    "without a login and unencrypted (docs/serving.md)"
)
_PORT = "Serve on this port instead; 0 takes a free one."


def load_served(
    runner: Runner, surveyed: BundleNeeds, dist: Path, *, named: bool, selftest: bool
) -> dict[str, str]:
    """Load the bundles that the runner takes; tell on stderr of each further session and refusal.

    Returns why bundles were not loaded, by their files' names, as clients may read it. ``named``:
    the user named each bundle, so they are not all of ``dist``. Raises RunError if none is loaded.
    """
    from toolchain.device.runtime.runner import load_fitting
    from toolchain.device.serve.faults import refusal
    from toolchain.device.store import dist as folder

    refused: dict[str, str] = {}

    def tell(path: Path, err: Da3Error) -> None:
        if isinstance(err, SessionLimitError):
            err.say(err.needed, "--sessions ")
        refused[path.stem] = refusal(err).message
        if isinstance(err, BackboneMismatchError) and not named:
            # Nobody asked for this one: it lies in the same folder.
            click.echo(clean(f"not loaded: {path}: {_other_backbone(err)}"), err=True)
            return
        complain_of(f"not loaded: {path}", err)

    if not named:
        for path, err in folder.unusable(dist).items():
            tell(path, err)
    load_fitting(runner, surveyed, selftest=selftest, made=_tell_cost, refused=tell)
    return refused


def _other_backbone(err: Da3Error) -> str:
    first = err.message.splitlines()[0]
    return f"{first}; one server has one backbone, --backbone names another"


def _tell_cost(path: Path, cost: Cost) -> None:
    grown = "" if cost.resident_bytes is None else f"{cost.resident_bytes / 2**20:.0f} MiB and "
    click.echo(
        clean(f"{path}: a session of the backbone of its own, {grown}{cost.seconds:.1f} s"),
        err=True,
    )


def tell_exchanged(name: str, err: Da3Error | None) -> None:
    """Tell on stderr that a store's domain was exchanged, or why it was not."""
    if err is None:
        click.echo(clean(f"{name}: exchanged for what the store has now"), err=True)
    else:
        complain_of(f"not exchanged, what ran goes on: {name}", err)


def serve_until_signalled(
    runner: Runner,
    port: int,
    repository: Path | None,
    refused: Mapping[str, str],
    serving: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM; print the address on stdout as soon as it answers.

    ``refused``: the bundles that were not loaded, by their files' names, and why, as clients may
    read it.
    """
    from toolchain.device.serve import Limits, serve
    from toolchain.device.serve.server import is_exposed, share_the_interpreter

    def tell(url: str) -> None:
        names = sorted(runner.domains)
        document = {
            "url": url,
            "domains": names,
            "backbone": runner.facts.backbone.name,
            "not_loaded": refused,
        }
        if is_exposed(urlsplit(url).hostname or ""):
            click.echo(_EXPOSED.format(url=url), err=True)
        emit(document, [f"serving {some(names)} on {url}; Ctrl-C stops"], as_json=as_json)

    own = ("host", "control")
    limits = Limits(**{name: value for name, value in serving.items() if name not in own})
    host = serving.get("host", "127.0.0.1")
    share_the_interpreter()
    with _signalled() as stop:
        serve(
            runner,
            host=host,
            port=port,
            repository=repository,
            refused=refused,
            control=serving.get("control", False),
            limits=limits,
            notify=tell,
            stop=stop,
        )


@contextmanager
def _signalled() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set instead of ending the process."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    # A handler may interrupt any line of the main thread, so it does no more than set the event.
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
