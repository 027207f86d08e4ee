"""``da3 device``: a device's store, by hand and by its agent."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.cli.boundary import BoundedCommand, BoundedGroup
from toolchain.cli.options import FILE, CommandT, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit
from toolchain.cli.show.progress import Line
from toolchain.core.signals import handled

if TYPE_CHECKING:
    from toolchain.device.agent.operations import Device

STORE = Path("/var/lib/da3")


def _store_option(command: CommandT) -> CommandT:
    return click.option(
        "--store",
        type=FILE,
        default=STORE,
        show_default=True,
        envvar="DA3_STORE",
        show_envvar=True,
        metavar="DIR",
        help="The device's store.",
    )(command)


@click.group(
    cls=BoundedGroup,
    epilog=layout.example(
        "da3 device init --root root.json --repository https://example.org/site",
        "da3 device install cars",
        "da3 device activate cars",
        "da3 device agent",
    ),
)
def device() -> None:
    """Keep a device as it should be: signed releases, a trial, and a way back.

    A release is verified and tested before it runs. What does not answer well goes back by itself.
    docs/device.md tells how a store is made and what to do when.
    """


@device.command(
    "init",
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 device init --root root.json --repository file:///media/usb/site",
        "da3 device init --unsigned --store device/",
    ),
)
@_store_option
@click.option("--root", type=FILE, metavar="FILE", help="Root metadata of the repository.")
@click.option("--repository", metavar="URL", help="https://, http:// or file:// of the site.")
@click.option("--domain", "domains", multiple=True, metavar="NAME", help="A domain to keep here.")
@click.option("--unsigned", is_flag=True, help="Take unsigned files by hand, too.")
@click.option(
    "--quota", type=click.IntRange(1), metavar="MIB", help="The most that the store may hold."
)
@json_option
def init(
    store: Path,
    root: Path | None,
    repository: str | None,
    domains: tuple[str, ...],
    unsigned: bool,
    quota: int | None,
    as_json: bool,
) -> None:
    """Make the store of a device, and its policy, which you may edit.

    The root metadata says whose signatures count; bring it by a way that you trust.
    """
    from toolchain.core.files import MIB
    from toolchain.device.agent import by_hand
    from toolchain.device.agent.policy import POLICY_NAME, checked_policy
    from toolchain.device.store.state import Settings

    policy = checked_policy(repository=repository, domains=domains or None, unsigned=unsigned)
    settings = Settings(quota_bytes=None if quota is None else quota * MIB)
    made = by_hand.init(store, root, policy, settings)
    path = made.path / POLICY_NAME
    lines = [layout.clean(f"{made.path}: a store, with its policy in {path}")]
    emit({"store": made.path, "policy": path}, lines, as_json=as_json)


@device.command(
    "install",
    cls=BoundedCommand,
    epilog=layout.example("da3 device install cars", "da3 device install dist/cars.da3b"),
)
@click.argument("what", metavar="NAME|FILE")
@_store_option
@json_option
def install(what: str, store: Path, as_json: bool) -> None:
    """Fetch, verify and test the newest release of a domain; nothing that runs changes.

    FILE is a bundle or the folder of a backbone that nobody has signed; the policy must allow it.
    """
    from toolchain.device.agent import by_hand

    with _device(store) as opened:
        unit = by_hand.install(opened, what)
    emit({"unit": unit}, [layout.clean(f"{unit}: installed")], as_json=as_json)


@device.command("activate", cls=BoundedCommand, epilog=layout.example("da3 device activate cars"))
@click.argument("name", metavar="NAME")
@_store_option
@json_option
def activate(name: str, store: Path, as_json: bool) -> None:
    """Let the newest installed release of a domain run; it stays if it is well.

    A backbone that it needs comes along. The exit code is 5 where the device went back.
    """
    from toolchain.device.agent import by_hand

    with _device(store) as opened:
        by_hand.activate(opened, name)
    emit({"active": name}, [layout.clean(f"{name}: runs")], as_json=as_json)


@device.command("remove", cls=BoundedCommand, epilog=layout.example("da3 device remove cars"))
@click.argument("name", metavar="NAME")
@_store_option
@json_option
def remove(name: str, store: Path, as_json: bool) -> None:
    """Let a domain run no longer."""
    from toolchain.device.agent import by_hand

    with _device(store) as opened:
        by_hand.remove(opened, name)
    emit({"removed": name}, [layout.clean(f"{name}: runs no longer")], as_json=as_json)


@device.command(
    "rollback",
    cls=BoundedCommand,
    epilog=layout.example("da3 device rollback", "da3 device rollback cars"),
)
@click.argument("name", required=False, metavar="[NAME]")
@_store_option
@json_option
def rollback(name: str | None, store: Path, as_json: bool) -> None:
    """Take the last change back: what ran before runs again, backbone and domains together."""
    from toolchain.device.agent import by_hand

    with _device(store) as opened:
        units = by_hand.roll_back(opened, name)
    lines = [layout.clean(f"{unit}: runs as before") for unit in units]
    emit({"units": units}, lines, as_json=as_json)


@device.command("status", cls=BoundedCommand, epilog=layout.example("da3 device status --json"))
@_store_option
@json_option
def status(store: Path, as_json: bool) -> None:
    """Show what is installed, what runs, what failed, and what the device is."""
    from toolchain.cli.show.device import status_lines
    from toolchain.device.agent.protocol import facts_of

    with _device(store) as opened:
        facts = facts_of(opened.store, opened.policy)
    emit(facts.document(), status_lines(facts), as_json=as_json)


@device.command("history", cls=BoundedCommand, epilog=layout.example("da3 device history"))
@_store_option
@json_option
def history(store: Path, as_json: bool) -> None:
    """Show the journal: everything that happened here, oldest first, its chain verified."""
    from toolchain.cli.show.device import history_lines
    from toolchain.device.store.store import Store

    entries = Store.open(store).history()
    emit({"entries": entries}, history_lines(entries), as_json=as_json)


@device.command("verify", cls=BoundedCommand, epilog=layout.example("da3 device verify"))
@_store_option
@json_option
def verify(store: Path, as_json: bool) -> int:
    """Compare every byte of the store with its digest, without a network; 4 if one differs."""
    from toolchain.cli.show.device import verify_lines
    from toolchain.core.errors import VerificationError
    from toolchain.device.store.store import Store

    report = Store.open(store).verify()
    emit({"ok": report.ok, "report": report}, verify_lines(report), as_json=as_json)
    return 0 if report.ok else VerificationError.exit_code


@device.command("gc", cls=BoundedCommand, epilog=layout.example("da3 device gc"))
@_store_option
@json_option
def gc(store: Path, as_json: bool) -> None:
    """Remove releases that neither run, nor ran before, nor are under way."""
    from toolchain.cli.show.device import gc_lines
    from toolchain.device.store.store import Store

    with Store.open(store).writing() as writer:
        report = writer.gc()
    emit({"report": report}, gc_lines(report), as_json=as_json)


@device.command("recover", cls=BoundedCommand, epilog=layout.example("da3 device recover"))
@_store_option
@json_option
def recover(store: Path, as_json: bool) -> None:
    """Put the store right after a start of the device; the agent does this by itself."""
    from toolchain.cli.show.device import recovery_lines
    from toolchain.device.store.store import Store

    with Store.open(store).writing() as writer:
        recovery = writer.recover()
    emit({"recovery": recovery}, recovery_lines(recovery), as_json=as_json)


@device.command(
    "unit",
    cls=BoundedCommand,
    epilog=layout.example("da3 device unit > /etc/systemd/system/da3-agent.service"),
)
@_store_option
@click.option("--user", default="da3", show_default=True, metavar="NAME", help="Not root.")
@json_option
def unit(store: Path, user: str, as_json: bool) -> None:
    """Print the unit with which systemd runs the agent."""
    from toolchain.device.agent.service import unit_text

    text = unit_text(store, user)
    emit({"unit": text}, [text.rstrip()], as_json=as_json)


@device.command(
    "agent",
    cls=BoundedCommand,
    epilog=layout.example("da3 device agent", "da3 device agent --once --json"),
)
@_store_option
@click.option("--once", is_flag=True, help="Look and act once, and end.")
@click.option("--round", "is_round", is_flag=True, hidden=True, help="One round of an agent.")
@json_option
def agent(store: Path, once: bool, is_round: bool, as_json: bool) -> int:
    """Keep the device as its policy says, until a signal ends it.

    With --once the exit code is 5 where a release did not come to stay.
    """
    from toolchain.device.agent.loop import Loop, round_words, start_words

    if once or is_round:
        return _round(store, starts=once, as_json=as_json)
    stop = threading.Event()
    with _ending(stop):
        Loop(start_words(store), round_words(store), stop.wait, _said).run()
    return 0


def _round(store: Path, *, starts: bool, as_json: bool) -> int:
    """Go round once; ``starts``: the device, or whoever keeps it, starts with this."""
    from toolchain.cli.show.device import round_lines
    from toolchain.core.errors import RolledBackError
    from toolchain.device.agent.agent import Agent

    with _device(store) as opened:
        running = Agent(opened)
        if starts:
            running.start()
        done = running.once()
        poll_s = opened.policy.poll_s
    next_s = min(poll_s, done.postponed_s or poll_s)
    emit({"round": done, "next_s": next_s}, round_lines(done), as_json=as_json)
    return RolledBackError.exit_code if done.failed else 0


def _said(text: str) -> None:
    click.echo(layout.clean(text), err=True)


@contextmanager
def _device(store: Path) -> Iterator[Device]:
    """Yield the device of a store; what it does is told on stderr from the first second on."""
    from toolchain.device.agent.by_hand import open_device

    line = Line(sys.stderr)

    def tell(text: str) -> None:
        # A log file keeps every step; a terminal shows the one that is under way.
        if text.startswith("WARNING") or not line.live:
            line.keep(text)
        else:
            line.draw(text)

    try:
        yield open_device(store, tell)
    finally:
        line.end()


@contextmanager
def _ending(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set ``stop`` instead of ending the process."""
    with handled((signal.SIGINT, signal.SIGTERM), lambda *_: stop.set()):
        yield
