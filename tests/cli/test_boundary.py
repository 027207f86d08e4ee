"""The error boundary: every leaf of the tree, JSON, interruption, broken pipes, internal errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.support.exported import search_path, write_recipe
from tests.support.toy_export import invoke
from toolchain.cli.boundary import BoundedCommand, command_in_fix
from toolchain.cli.options import json_option
from toolchain.core import errors
from toolchain.core.errors import Da3Error, Fault

DA3 = (sys.executable, "-m", "toolchain")
CASES: list[Da3Error] = [
    *(
        kind("expected this, got that", fix="do so")
        for name in errors.__dict__
        if isinstance(kind := errors.__dict__[name], type)
        and issubclass(kind, Da3Error)
        and kind.__init__ is Da3Error.__init__
    ),
    errors.UnknownNameError("domain", "carz", ["cars"]),
    errors.DataError("expected a picture, got none", fix="add one"),
    errors.RecipeError("x.yaml", [Fault("train.lr", "expected a number, got text", "0.01")]),
    errors.MissingPackageError("onnx", "this", "check"),
]


def failing(raises: Callable[[], None], *words: str) -> Result:
    @click.command(cls=BoundedCommand)
    @json_option
    def command(as_json: bool) -> None:
        raises()

    return CliRunner().invoke(command, words)


def raiser(err: BaseException) -> Callable[[], None]:
    def raises() -> None:
        raise err

    return raises


@pytest.mark.parametrize("err", CASES, ids=lambda err: type(err).__name__)
def test_every_leaf_becomes_its_exit_code_with_the_fix(err: Da3Error) -> None:
    result = failing(raiser(err))
    assert result.exit_code == err.exit_code
    assert f"error: {err.message}" in result.stderr
    assert (f"fix: {err.fix}" in result.stderr) == bool(err.fix)
    assert result.stdout == ""
    error = json.loads(failing(raiser(err), "--json").stdout)["error"]
    assert (error["type"], error["exit_code"]) == (type(err).__name__, err.exit_code)
    assert (error["message"], error["fix"]) == (err.message, err.fix)


def test_the_faults_of_a_recipe_are_told_one_by_one() -> None:
    error = json.loads(failing(raiser(CASES[-2]), "--json").stdout)["error"]
    assert error["faults"] == [
        {"path": "train.lr", "message": "expected a number, got text", "fix": "0.01"}
    ]


def test_usage_errors_are_json_as_well() -> None:
    result = invoke("check", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error == {
        "type": "MissingParameter",
        "message": "Missing argument 'BUNDLE'.",
        "fix": "da3 check --help",
        "exit_code": 2,
    }
    assert result.stderr == ""


def test_what_nobody_expected_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DA3_TRACEBACK", raising=False)
    result = failing(raiser(ZeroDivisionError("by zero")))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: internal error: ZeroDivisionError: by zero",
        "fix: run again with DA3_TRACEBACK=1 for the traceback, and report it",
    ]
    monkeypatch.setenv("DA3_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in failing(raiser(ZeroDivisionError())).stderr


def test_a_missing_package_of_ours_names_its_extra() -> None:
    result = failing(raiser(ModuleNotFoundError("no", name="torch.nn")))
    assert "needs the package 'torch'" in result.stderr
    assert "fix: in a checkout of the toolchain: pip install '.[export]'" in result.stderr
    # Who trains needs onnx and PyTorch: one round of installing, not two.
    for verb, extra in (("check", "check"), ("train", "export"), ("export", "export")):
        lacking = click.command(verb, cls=BoundedCommand)(raiser(ModuleNotFoundError(name="onnx")))
        result = CliRunner().invoke(lacking, [])
        assert f"pip install '.[{extra}]'" in result.stderr
    result = failing(raiser(ModuleNotFoundError("no", name="somebody_elses")))
    assert "internal error" in result.stderr


def test_ctrl_c_is_130() -> None:
    result = failing(raiser(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert "error: interrupted" in result.stderr


def test_what_a_file_says_cannot_move_the_cursor() -> None:
    result = failing(raiser(errors.DataError("got \x1b[2J\rname")))
    assert "\x1b" not in result.stderr
    assert "\\x1b[2J\\rname" in result.stderr


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(cls=BoundedCommand)
    def command() -> None:
        click.secho("text", fg="red")

    assert "\x1b" in CliRunner().invoke(command, color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert CliRunner().invoke(command, color=True).stdout == "text\n"


def test_naming_completes_a_fix_by_the_command() -> None:
    with pytest.raises(errors.TrainingError) as caught, command_in_fix("da3 train --domain x"):
        raise errors.TrainingError("stopped", fix="go on with resume")
    assert caught.value.fix == "go on with resume: da3 train --domain x --resume"
    with pytest.raises(errors.TrainingError) as caught, command_in_fix("da3 train --domain x"):
        raise errors.TrainingError("no", fix="train from the start, without resume")
    assert caught.value.fix == "train from the start, without resume"


def test_a_fix_that_trains_again_changes_what_went_wrong() -> None:
    """The same training again would end as the one before."""
    err = errors.DivergedError("diverged", fix="lower it and train again, overwriting this")
    err.settings = ("train.lr=0.003",)
    with pytest.raises(errors.DivergedError), command_in_fix("da3 train --domain x --log runs"):
        raise err
    assert err.fix.endswith(": da3 train --domain x --log runs --set train.lr=0.003 --overwrite")


@pytest.mark.parametrize("words", ["recipes ls", "recipes ls --json", "check --json"])
def test_a_closed_pipe_is_quiet(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*DA3, *words.split()], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert done.stderr == b""


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m toolchain {command}', sys.executable],
        cwd=folder,
        env=os.environ | search_path(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(toy_backbone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe ``toy``; trainings share its cache."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipes").mkdir()
    write_recipe(folder / "recipes", epochs=1)
    write_recipe(folder / "recipes", "long", epochs=10_000)
    return folder


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("2>&-", marks=pytest.mark.full),
        pytest.param(">&-", marks=pytest.mark.full),
        pytest.param(">&- 2>&-", marks=pytest.mark.full),
        "<&- >&- 2>&-",
    ],
)
def test_a_closed_stream_is_quiet(project: Path, tmp_path: Path, closed: str) -> None:
    done = shell(f"train --domain toy --threads 1 --out '{tmp_path}/toy' {closed}", project)
    assert done.returncode == 0
    assert "NoneType" not in done.stdout + done.stderr
    assert bool(done.stdout) == (closed == "2>&-")
    assert (tmp_path / "toy").is_dir()


def test_a_closed_stderr_leaves_the_result(project: Path) -> None:
    done = shell("recipes check recipes/toy.yaml 2>&-", project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "toy" in done.stdout


def test_an_export_with_stderr_closed_tells_its_error_by_the_code(tmp_path: Path) -> None:
    done = shell("export --domain nowhere 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("recipes ls >/dev/full", 1, "error: cannot write the output: No space left on device"),
        ("recipes ls --json >/dev/full", 1, "error: cannot write the output: No space left"),
        ("check --json >/dev/full", 2, "error: Missing argument"),
        ("check 2>/dev/full", 2, ""),
        ("recipes ls >/dev/full 2>/dev/full", 1, ""),
    ],
)
def test_a_full_stream_is_one_message(tmp_path: Path, words: str, code: int, says: str) -> None:
    done = shell(words, tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("error:") == bool(says)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


WAITS = """
import signal, tempfile, time
import click
from toolchain.cli.boundary import BoundedCommand

# A background job of a shell ignores Ctrl-C, and so would we.
signal.signal(signal.SIGINT, signal.default_int_handler)

@click.command(cls=BoundedCommand)
def command():
    with tempfile.TemporaryDirectory(), tempfile.NamedTemporaryFile():
        print("waits", flush=True)
        for _ in range(600):  # a signal just before one sleep would wait for its end
            time.sleep(0.1)

command()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_nothing_in_its_temporary_folder(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "waits\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(number)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert "error: interrupted; no file was left half-written" in rest
    assert not list(tmp_path.iterdir())


def test_a_signal_that_the_caller_handles_or_ignores_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        failing(lambda: signal.raise_signal(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.full),
    ],
)
def test_a_signal_in_training_names_the_command_that_goes_on(
    project: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "long"
    with subprocess.Popen(
        [*DA3, "train", "--domain", "long", "--threads", "1", "--out", str(out)],
        cwd=project,
        env=os.environ | search_path(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr is not None
        lines: list[str] = []
        while not lines or "epoch 1/10000" not in lines[-1]:
            lines.append(child.stderr.readline())
            assert lines[-1], lines
        child.send_signal(number)
        rest = child.stderr.read()
    # Every phase says that it begins, before it works, and again where it takes long.
    names = [line.removeprefix("long: ").split("  ")[0].strip() for line in lines[:-1]]
    phases = list(dict.fromkeys(names))
    assert phases[:4] == [
        *("list the pictures", "start PyTorch", "build the model", "count the memory")
    ]
    assert "for the backward pass" in phases[4]
    trial = "export it untrained, for trial"
    (memory_line,) = (name for name in phases if name.startswith("export for trial"))
    assert "before the first step: at most" in memory_line
    shown = [name for name in phases[5:] if name != memory_line]
    assert [name for name in shown if not name.startswith("fit the head")] == [
        trial,
        f"{trial}: split into backbone and domain",
        f"{trial}: take the reference from PyTorch",
        f"{trial}: link every flavour",
        f"{trial}: pack the bundle",
        "train: steps",
    ]
    assert child.returncode == 1
    assert "error: stopped after step" in rest
    again = f"da3 train --domain long --out {out} --threads 1 --resume"
    assert f"fix: go on with resume: {again}" in rest
    process = subprocess.run(
        [*DA3, "inspect", f"{out}.training.safetensors", "--json"],
        capture_output=True,
        check=True,
    )
    document = json.loads(process.stdout)
    assert (document["kind"], document["facts"]["step"] > 0) == ("training", True)


def test_what_the_file_system_refuses_is_no_internal_error() -> None:
    err = PermissionError(13, "Permission denied", "/srv/set")
    result = failing(raiser(err))
    assert result.exit_code == 1
    assert result.stderr == (
        "error: cannot use /srv/set: Permission denied\nfix: check the path and its permissions\n"
    )


def test_the_faults_of_a_folder_are_told_one_by_one() -> None:
    faults = [Fault(f"{i}.jpg", "cannot be read", "check it") for i in range(30)]
    err = errors.DataError.of("set", faults, fix="remove them")
    result = failing(raiser(err))
    assert "set: 30 faults\n  0.jpg: cannot be read\n" in result.stderr
    assert "  19.jpg: cannot be read\n  and 10 more\n" in result.stderr
    error = json.loads(failing(raiser(err), "--json").stdout)["error"]
    assert [fault["path"] for fault in error["faults"]] == [f"{i}.jpg" for i in range(30)]


NOISY = """
import os, sys
import click
from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import json_option
from toolchain.cli.show.output import emit
from toolchain.core.errors import BundleError

@click.command(cls=BoundedCommand)
@click.argument("how")
@json_option
def command(how, as_json):
    print("a library in Python")
    os.write(1, b"a library in C\\n")
    os.system("echo a program")
    if how == "fails":
        raise BundleError("expected this, got that", fix="do so")
    emit({"how": how}, ["done"], as_json=as_json)

command.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("how", "code"), [("works", 0), ("fails", 4)])
def test_stdout_belongs_to_the_document_whatever_libraries_print(how: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY, how, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    document = json.loads(done.stdout)
    assert document.get("how") == how or document["error"]["type"] == "BundleError"
    for line in ("a library in Python", "a library in C", "a program"):
        assert line in done.stderr


def test_for_people_a_library_prints_where_it_likes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY, "works"], capture_output=True, text=True, check=False
    )
    assert {"a library in Python", "done"} <= set(done.stdout.splitlines())


def test_a_lack_of_memory_is_an_error_of_ours() -> None:
    """Never the end of a process with a traceback, and told as a document too."""
    result = failing(raiser(MemoryError("cannot allocate 3 GiB")))
    assert result.exit_code == 1
    assert "error: expected enough memory" in result.stderr
    assert "cannot allocate 3 GiB" in result.stderr
    error = json.loads(failing(raiser(MemoryError()), "--json").stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("OutOfMemoryError", 1)
