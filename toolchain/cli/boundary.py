"""The one error boundary: what the library raises becomes a message and an exit code.

Rules of this file: every command runs inside ``_Boundary.main``. Nothing else in the room ends the
process for an error. SIGTERM and SIGHUP end a command as Ctrl-C does, so that what it has in
temporary folders goes with it. A message goes to stderr as ``error:`` and ``fix:``; with ``--json``
it is a document on stdout instead. With ``--json`` and ``--jsonl`` stdout belongs to the results
alone: what a library prints there, in Python or in C, goes to stderr. A closed stream drops what is
written to it; a full one is an error like any other. A traceback is shown only where DA3_TRACEBACK
is set.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO

import click

from toolchain.cli.show.output import Results, complain, write_json
from toolchain.core.errors import (
    Da3Error,
    DataError,
    MissingPackageError,
    RecipeError,
    StorageError,
    TrainingError,
)
from toolchain.core.files import refused, room_fix
from toolchain.core.memory import out_of_memory
from toolchain.core.signals import handled

INTERRUPTED = 130
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a command to end, beside Ctrl-C's."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_EXTRAS = {
    "torch": "export",
    "sklearn": "export",
    "onnxscript": "export",
    "onnx": "check",
    "onnx_ir": "check",
}
# A word in a fix of the library, and the flag of the command that does it.
_FLAGS = (("go on with", "--resume"), ("overwrit", "--overwrite"))


class _Boundary:
    """Mixed into click's commands, so that ``main`` ends the process in every case."""

    name: str | None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command and exit with its code; see :meth:`click.Command.main`."""
        words = args[0] if args else extra.get("args")
        words = sys.argv[1:] if words is None else words
        # Looked for, not parsed: the arguments themselves may be what is wrong.
        as_json = "--json" in words
        owned = (as_json or "--jsonl" in words) and "--help" not in words
        colour = False if os.environ.get("NO_COLOR") else None
        _open_closed_streams()
        _escape_what_is_not_encodable()
        with _stdout_for_results(owned=owned) as results:
            try:
                # Otherwise click would print errors its own way and end the process.
                options = {**extra, "standalone_mode": False, "color": colour, "obj": results}
                with _ended_like_ctrl_c():
                    code = super().main(*args, **options)  # type: ignore[misc]
            # Every error ends here; one that is none of the library's is an internal error, code 1.
            except Exception as err:
                known = _known(err, {str(self.name), *words[:1]}).with_traceback(err.__traceback__)
                code = _report(known, results if as_json else None, colour)
            except KeyboardInterrupt:
                code = _report(click.Abort(), results if as_json else None, colour)
            _drop_unwritten(results.stream)
        sys.exit(code if isinstance(code, int) else 0)


class BoundedCommand(_Boundary, click.Command):
    """A command with the boundary."""


class BoundedGroup(_Boundary, click.Group):
    """A group with the boundary."""


@contextmanager
def command_in_fix(command: str) -> Iterator[None]:
    """Add ``command`` with its flag to a fix that asks for resuming or overwriting."""
    try:
        yield
    except Da3Error as err:
        name_command(err, command)
        raise


def name_command(err: Da3Error, command: str) -> None:
    """Do as :func:`command_in_fix` for an error at hand."""
    flags = [flag for word, flag in _FLAGS if word in err.fix and flag not in err.fix]
    # The same training again would end as this one did. A later setting wins.
    settings = err.settings if isinstance(err, TrainingError) else ()
    other = "".join(f" --set {shlex.quote(setting)}" for setting in settings)
    if flags:
        err.fix += ": " + ", or: ".join(f"{command}{other} {flag}" for flag in flags)


def _ended_like_ctrl_c() -> AbstractContextManager[None]:
    """Raise KeyboardInterrupt inside the block when a signal of ``ENDING`` comes.

    By default they would end the process at once, and leave its temporary files. One that is
    ignored (``nohup``) stays so, and the handler of a program around us stays as well.
    """
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    return handled(ours, signal.default_int_handler)


def _open_closed_streams() -> None:
    """Open the null device for a stream that is closed (``2>&-``), where Python has None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


@contextmanager
def _stdout_for_results(*, owned: bool) -> Iterator[Results]:
    """Yield where results go: stdout.

    If it is ``owned``, everything else that is printed there goes to stderr while the block runs.
    """
    stdout = sys.stdout
    if not owned:
        yield Results(stdout)
        return
    number, errors = _number(stdout), _number(sys.stderr)
    if number is None or errors is None:
        number = None
        stream: TextIO = stdout
    else:
        # A library in C writes to the number, so the results take another one.
        stdout.flush()
        private = os.dup(number)
        os.dup2(errors, number)
        stream = os.fdopen(private, "w", encoding=stdout.encoding, errors="backslashreplace")
    sys.stdout = sys.stderr
    try:
        yield Results(stream)
    finally:
        sys.stdout = stdout
        if number is not None:
            os.dup2(stream.fileno(), number)
            stream.close()


def _number(stream: TextIO) -> int | None:
    """Return the number of a stream of the process; None where a caller put another object."""
    try:
        return stream.fileno()
    except OSError:
        return None


def _drop_unwritten(results: TextIO) -> None:
    """Drop the buffer of a stream that takes nothing; else Python complains at exit once more."""
    for stream in (results, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _escape_what_is_not_encodable() -> None:
    """Escape a character that a stream's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _known(err: Exception, verbs: Collection[str]) -> Exception:
    """Return the library's error for a lack of memory or of a package, and for a refusing disk.

    ``verbs``: what the command may be called. One that trains lacks all of its packages at once.
    """
    if isinstance(err, MemoryError):
        return out_of_memory(err)
    name = (getattr(err, "name", None) or "").partition(".")[0]
    if isinstance(err, ModuleNotFoundError) and name in _EXTRAS:
        extra = "export" if {"train", "export"} & {*verbs} else _EXTRAS[name]
        return MissingPackageError(name, "this command", extra)
    # An error of the library's own files carries a file name. One without is a stream's.
    if isinstance(err, OSError) and err.errno in _NO_ROOM and err.filename is None:
        return StorageError(
            f"cannot write the output: {err.strerror}",
            fix=room_fix(err, "make room where stdout or stderr goes, or send it elsewhere"),
        )
    # What the file system refuses is never a fault of the program, whichever call met it first.
    if isinstance(err, OSError) and err.filename is not None and err.strerror is not None:
        return refused(err)
    return err


def _report(err: Exception, results: Results | None, colour: bool | None) -> int:
    """Report ``err``, to ``results`` as a document or to stderr, and return the exit code."""
    if os.environ.get("DA3_TRACEBACK"):
        traceback.print_exception(err, file=sys.stderr)
    document = _document(err)
    try:
        _print(err, document, results, colour)
    except BrokenPipeError:
        pass  # nobody reads
    except OSError:
        # stdout takes no document. If stderr takes no line either, only the exit code is left.
        with suppress(OSError):
            _print(err, document, None, colour)
    return int(document["exit_code"])


def _print(
    err: Exception, document: dict[str, Any], results: Results | None, colour: bool | None
) -> None:
    if results is not None:
        write_json({"error": document}, results)
        return
    if isinstance(err, click.exceptions.NoArgsIsHelpError):
        err.show()
        return
    if isinstance(err, click.UsageError) and err.ctx is not None:
        click.echo(err.ctx.get_usage(), err=True, color=colour)
    complain(document["message"], document["fix"], colour=colour)


def _document(err: Exception) -> dict[str, Any]:
    """Return type, message, fix and exit code of an error, and the faults that it lists."""
    match err:
        case RecipeError(faults=faults) | DataError(faults=faults) if faults:
            return {**_library_fields(err), "faults": faults}
        case Da3Error():
            return _library_fields(err)
        case click.Abort():
            return _fields("Interrupted", "interrupted; no file was left half-written", INTERRUPTED)
        case click.UsageError(ctx=click.Context(command_path=path)):
            return _fields(
                type(err).__name__, err.format_message(), err.exit_code, f"{path} --help"
            )
        case click.ClickException():
            return _fields(type(err).__name__, err.format_message(), err.exit_code)
    message = f"internal error: {type(err).__name__}: {err}"
    fix = "run again with DA3_TRACEBACK=1 for the traceback, and report it"
    return _fields("InternalError", message, 1, fix)


def _library_fields(err: Da3Error) -> dict[str, Any]:
    return _fields(type(err).__name__, err.message, err.exit_code, err.fix)


def _fields(kind: str, message: str, code: int, fix: str = "") -> dict[str, Any]:
    return {"type": kind, "message": message, "fix": fix, "exit_code": code}
