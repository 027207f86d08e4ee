"""``da3 run``: answer pictures, folders, videos and cameras, or serve domains over HTTP."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from toolchain.bundle.linkage import FORMS, LINKED_ROLES
from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    CommandT,
    json_option,
    runner_backbone_option,
    threads_option,
)
from toolchain.cli.serving import (
    load_served,
    serve_until_signalled,
    serving_options,
    tell_exchanged,
)
from toolchain.cli.show import layout
from toolchain.cli.show.answers import PRINTERS
from toolchain.core.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    from toolchain.device import Frame, Runner

FAILED = 1
TOP = 3
DIST = Path("dist")
# OpenCV and FFmpeg print about a damaged video; the error says it already.
QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}


def _choice(name: str, text: str, *values: str) -> Callable[[CommandT], CommandT]:
    kind = click.Choice(values)
    return click.option(name, type=kind, default=values[0], show_default=True, help=text)


def _count(name: str, text: str, default: int | None) -> Callable[[CommandT], CommandT]:
    shown = default is not None
    return click.option(
        name, type=click.IntRange(1), default=default, show_default=shown, metavar="N", help=text
    )


def _runner_options(command: CommandT) -> CommandT:
    """Add the arguments of a Runner, under its own names."""
    for option in (
        _count("--sessions", "Copies of the backbone that may be held.", 1),
        _choice("--form", "Pictures one by one, or a batch in one call.", *FORMS),
        _choice("--flavour", "Tensors go in with each run, or are folded in.", *LINKED_ROLES),
        click.option(
            "--provider",
            type=click.Choice(["cpu", "cuda", "tensorrt", "engine"]),
            help="What computes.  [default: cpu; engine for the folder of an engine]",
        ),
        _count("--contexts", "Requests that an engine computes at once.", 1),
        threads_option(1, "Threads of one operator."),
    ):
        command = option(command)
    return command


def _complete_bundle(
    context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the bundles in the folder whose name starts with what was typed."""
    from toolchain.device.store.dist import listed

    folder = Path(context.params.get("dist") or DIST)
    return [CompletionItem(name) for name in listed(folder) if name.startswith(typed)]


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 run --domain cars photo.jpg other.png",
        "da3 run --domain cars photos/ clip.mp4 --jsonl",
        "da3 run --domain cars camera:0",
        "da3 run --serve 8000",
        "da3 run --serve 8000 --store /var/lib/da3",
    ),
)
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME",
    shell_complete=_complete_bundle,
    help="A bundle DIST/NAME.da3b.",
)
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="A bundle that lies elsewhere.",
)
@click.option(
    "--dist",
    type=FILE,
    default=DIST,
    show_default=True,
    metavar="DIR",
    help="Where --domain and --serve look.",
)
@click.option(
    "--store",
    type=FILE,
    metavar="DIR",
    help="Run what is current in a device's store, and follow it.",
)
@runner_backbone_option
@_runner_options
@click.option("--no-selftest", is_flag=True, help="Trust that the bundle was tested here before.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Seconds for one picture, or one request.  [default: none; serving: 30]",
)
@_count("--top", "Classes shown.", TOP)
@_count("--every", "Use the first of every N pictures or frames.", 1)
@_count("--limit", "Stop after N answers.", None)
@serving_options
@json_option
@click.option("--jsonl", "as_lines", is_flag=True, help="Print one line of JSON per picture.")
def run(
    images: Sequence[str],
    domains: Sequence[str],
    bundles: Sequence[Path],
    dist: Path,
    store: Path | None,
    backbone: Path | None,
    no_selftest: bool,
    time_limit: float | None,
    top: int,
    every: int,
    limit: int | None,
    port: int | None,
    serving: dict[str, Any],
    as_json: bool,
    as_lines: bool,
    **options: Any,
) -> int:
    """Answer pictures with a domain, or serve domains.

    IMAGE is a picture, a folder of pictures, a video file or camera:N. If a picture cannot be used,
    stderr says why, the others are answered, and the exit code is 1.

    --serve PORT answers the Open Inference Protocol instead, for every bundle in DIST that fits the
    backbone, or for those that are named. Ctrl-C or SIGTERM lets running requests end.

    With --store the domains are those that run on the device. What `da3 device` activates or takes
    back there is exchanged, and no request notices.
    """
    _require_meaning(
        images,
        port,
        [*domains, *bundles],
        serving,
        store=store,
        elsewhere=_used(
            {"--bundle": bundles, "--backbone": backbone, "--no-selftest": no_selftest}
        ),
        pictures=_used(
            {"--top": top != TOP, "--every": every != 1, "--limit": limit, "--jsonl": as_lines}
        ),
        unending=as_json and limit is None and any(map(_is_camera, images)),
        forms=as_json + as_lines,
    )
    from PIL.Image import DecompressionBombWarning

    from toolchain.device.runtime.runner import Runner
    from toolchain.device.store import dist as folder

    # The runner refuses such a picture with an error that says more.
    warnings.simplefilter("ignore", DecompressionBombWarning)

    form = "json" if as_json else "jsonl" if as_lines else "people"
    serving = serving | ({} if time_limit is None or port is None else {"time_s": time_limit})
    if store is not None and port is not None:
        with Runner.watch(store, told=tell_exchanged, **options) as runner:
            serve_until_signalled(runner, port, None, {}, serving, as_json=as_json)
        return 0
    if store is not None:
        where, source = _current(store, domains)
        with Runner(where, **options) as runner:
            runner.load(source)
            return _answer(runner, images, top, limit, form, every=every, time_limit_s=time_limit)
    named = [*(folder.find(dist, name) for name in domains), *bundles]
    surveyed = folder.survey(named or list(folder.bundles(dist).values()))
    with Runner(surveyed.backbone(backbone), **options) as runner:
        if port is not None:
            refused = load_served(
                runner, surveyed, dist, named=bool(named), selftest=not no_selftest
            )
            repository = None if bundles else dist
            serve_until_signalled(runner, port, repository, refused, serving, as_json=as_json)
            return 0
        runner.load(named[0], selftest=not no_selftest)
        return _answer(runner, images, top, limit, form, every=every, time_limit_s=time_limit)


def _current(store: Path, domains: Sequence[str]) -> tuple[Path, Path]:
    """Return the backbone and the domain that are current in a store; the only one by default."""
    from toolchain.device.store.current import read_running

    running = read_running(store)
    names = list(domains) or list(running.domains)
    if running.backbone is None or len(names) != 1 or names[0] not in running.domains:
        raise UnknownNameError(
            "domain", ", ".join(names), running.domains, fix="name one of them: --domain NAME"
        )
    return running.backbone, running.domains[names[0]]


def _answer(
    runner: Runner, images: Sequence[str], top: int, limit: int | None, form: str, **options: Any
) -> int:
    """Print the answers to all pictures; return the exit code."""
    with closing(_frames(runner, images, **options)) as frames:
        return FAILED if PRINTERS[form](runner, islice(frames, limit), top) else 0


def _used(options: Mapping[str, object]) -> list[str]:
    return [name for name, value in options.items() if value]


def _is_camera(source: str) -> bool:
    from toolchain.pictures.sources import is_endless

    return is_endless(source)


def _require_meaning(
    images: Sequence[str],
    port: int | None,
    named: Sequence[object],
    serving: Mapping[str, Any],
    *,
    store: Path | None,
    elsewhere: Sequence[str],
    pictures: Sequence[str],
    unending: bool,
    forms: int,
) -> None:
    """Raise click.UsageError for options that contradict each other."""
    if port is not None and images:
        raise click.UsageError("expected IMAGE... or --serve, got both")
    if port is None and not images:
        raise click.UsageError("expected IMAGE... or --serve PORT, got neither")
    if store is not None and elsewhere:
        raise click.UsageError(f"{', '.join(elsewhere)}: expected without --store")
    if store is not None and port is not None and named:
        raise click.UsageError("--domain: a store serves all of its domains")
    if store is None and port is None and len(named) != 1:
        raise click.UsageError(f"expected one --domain or --bundle, got {len(named)}")
    if port is not None and pictures:
        raise click.UsageError(f"{', '.join(pictures)}: expected with IMAGE only, got --serve")
    if port is None and serving:
        raise click.UsageError(f"{', '.join(serving)}: expected with --serve only")
    if forms > 1:
        raise click.UsageError("expected --json or --jsonl, got both")
    if unending:
        raise click.UsageError("a camera does not end: expected --limit N or --jsonl, got --json")


def _frames(
    runner: Runner, sources: Sequence[str], *, every: int, time_limit_s: float | None
) -> Generator[Frame]:
    """Yield the answers to all sources. A source that cannot be used is a frame with its error."""
    from toolchain.device.runtime.stream import Frame, stream

    for name, value in QUIET.items():
        # A setting of the user stays.
        os.environ.setdefault(name, value)
    for source in sources:
        try:
            yield from stream(runner, source, every=every, time_limit_s=time_limit_s)
        except DataError as err:
            yield Frame(source, 0, None, None, err)
