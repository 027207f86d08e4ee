"""The kit's shell script, run by a real shell; a small program stands where trtexec would."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import small_kits
from toolchain.core.errors import ModelRefusedError
from toolchain.device.boards.target import find
from toolchain.device.engine.kit import Kit, KitManifest
from toolchain.device.engine.script import SCRIPT_NAME, precision_options, script, shape_options

# It writes down how it was called, as many words as there were, and does what the options say.
TRTEXEC = r"""#!/bin/sh
echo "CALL $*" >> "$CALLS"
for option in "$@"; do
  case $option in
    --help) echo '&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help'; exit 0 ;;
    --saveEngine=*) save=${option#--saveEngine=} ;;
    --loadInputs=*open.bin*) ms=4.0; cp open.bin "$CALLS.open" ;;
    --loadEngine=*) ms=${ALONE_MS:-} ;;
    --loadInputs=*closed.bin*) ms=${CLOSED_MS:-1.5}; cp closed.bin "$CALLS.closed" ;;
  esac
done
if [ "${FAIL:-}" = yes ]; then echo '[E] Error[2]: out of memory'; exit 1; fi
if [ "${OOM:-}" = yes ] && [ -n "${save:-}" ]; then kill -9 $$; fi
if [ "${KILL:-}" = yes ] && [ -n "${save:-}" ]; then kill -9 $PPID; exit 137; fi
if [ -n "${save:-}" ]; then echo engine > "$save"; fi
if [ -n "${ms:-}" ]; then
  echo "[I] GPU Compute Time: min = 1 ms, max = 9 ms, mean = 2 ms, median = $ms ms, percentile = 3"
fi
"""
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]


def sums(files: dict[str, bytes]) -> str:
    from toolchain.core.digest import sha256

    return "".join(f"{sha256(b).removeprefix('sha256:')}  {n}\n" for n, b in files.items())


def kit(folder: Path, manifest: KitManifest | None = None) -> Kit:
    document = manifest or small_kits.manifest()
    text = script(
        document, find(document.target), "sha256:" + "1" * 64, sums(small_kits.FILES), 0.6
    )
    return small_kits.write(folder, document, **{SCRIPT_NAME: text})


class Board:
    """A folder with a kit and a machine's programs on the PATH."""

    def __init__(self, folder: Path, manifest: KitManifest | None = None) -> None:
        self.kit = kit(folder, manifest)
        self.calls = folder / "calls"
        self.out = folder / "out"
        self.programs = folder / "bin"
        self.programs.mkdir()
        self._program("trtexec", TRTEXEC)
        self._program("dpkg-query", "#!/bin/sh\necho 8.5.2-1+cuda11.4\n")
        self._program("nvpmodel", "#!/bin/sh\necho NV Power Mode: ${MODE:-MAXN}\n")

    def _program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def run(self, *words: str, shell: str = "sh", **env: str) -> subprocess.CompletedProcess[str]:
        command = [*(["busybox", "sh"] if shell == "busybox" else [shell])]
        command += [str(self.kit.path / SCRIPT_NAME), *words, str(self.out)]
        path = f"{self.programs}:/usr/bin:/bin"
        return subprocess.run(
            command,
            env={"PATH": path, "CALLS": str(self.calls), **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.mark.parametrize("shell", SHELLS)
def test_it_builds_and_names_the_engine_by_its_key(shell: str, tmp_path: Path) -> None:
    board = Board(tmp_path)
    done = board.run(shell=shell)
    assert done.returncode == 0, done.stderr
    plan = Path(done.stdout.strip())
    assert plan.read_text() == "engine\n"
    parts = plan.with_suffix(".key").read_text()
    assert "tensorrt=8.5.2-1+cuda11.4" in parts
    assert "power=NV Power Mode: MAXN" in parts
    (call,) = board.called
    assert "--onnx=swap.onnx" in call
    assert "--noTF32" in call
    assert "--minShapes=head.bias:1,head.weight:1x4" in call
    assert "--maxShapes=head.bias:64,head.weight:64x4" in call
    assert not list(board.out.glob("*.partial"))


def test_a_second_run_builds_nothing(tmp_path: Path) -> None:
    board = Board(tmp_path)
    first, second = board.run(), board.run()
    assert second.stdout == first.stdout
    assert len(board.called) == 1
    assert "up to date" in second.stderr


def test_another_power_mode_is_told_and_built_anew(tmp_path: Path) -> None:
    board = Board(tmp_path)
    first, second = board.run(), board.run(MODE="15W")
    assert second.stdout != first.stdout
    assert "power=NV Power Mode: MAXN" in second.stderr
    assert "power=NV Power Mode: 15W" in second.stderr
    assert "tensorrt=" not in second.stderr
    assert len(board.called) == 2


def test_a_corrupt_engine_is_built_anew(tmp_path: Path) -> None:
    board = Board(tmp_path)
    plan = Path(board.run().stdout.strip())
    plan.write_text("something else")
    assert board.run().returncode == 0
    assert plan.read_text() == "engine\n"


def test_an_altered_model_is_refused(tmp_path: Path) -> None:
    board = Board(tmp_path)
    (board.kit.path / "swap.onnx").write_bytes(b"b model")
    done = board.run()
    assert done.returncode == 4
    assert "altered" in done.stderr
    assert not board.called


def test_without_trtexec_it_says_how_to_get_it(tmp_path: Path) -> None:
    board = Board(tmp_path)
    (board.programs / "trtexec").unlink()
    done = board.run()
    assert done.returncode == 1
    assert "fix: sudo apt install tensorrt" in done.stderr


def test_a_failure_leaves_no_engine(tmp_path: Path) -> None:
    board = Board(tmp_path)
    done = board.run(FAIL="yes")
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert not list(board.out.glob("engine-*"))


def test_after_a_killed_build_the_segments_go_first(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.run(KILL="yes").returncode != 0
    assert not list(board.out.glob("engine-*.plan"))
    done = board.run()
    assert done.returncode == 0, done.stderr
    built = [call.split("--onnx=")[1].split()[0] for call in board.called]
    assert built == ["swap.onnx", "block00.side.onnx", "tail.onnx", "swap.onnx"]
    assert "Shapes" not in board.called[1]
    assert "--maxShapes=head.bias:64" in board.called[2]
    cache = {word for call in board.called for word in call.split() if "timingCache" in word}
    assert len(cache) == 1


def test_the_proof_holds_closed_against_open(tmp_path: Path) -> None:
    board = Board(tmp_path)
    done = board.run("--prove")
    assert done.returncode == 0, done.stderr
    assert "gates: skipping (open 4.0 ms, closed 1.5 ms" in done.stdout
    import struct

    opened = Path(f"{board.calls}.open").read_bytes()
    closed = Path(f"{board.calls}.closed").read_bytes()
    assert struct.unpack("<f", opened) == (1e4,)
    assert struct.unpack("<f", closed) == (-1e4,)
    assert "--loadInputs=block00.gate.bias:open.bin" in board.called[1]


def test_a_static_model_has_no_gate_to_force(tmp_path: Path) -> None:
    own = dataclasses.replace(
        small_kits.SWAP, flavour="static", domain="toy", release="sha256:" + "2" * 64
    )
    manifest = dataclasses.replace(small_kits.manifest(), flavours=(own,), slots=())
    board = Board(tmp_path, manifest)
    done = board.run("--prove", ALONE_MS="2.5")
    assert done.returncode == 0, done.stderr
    assert "gates: none that can be forced (2.5 ms)" in done.stdout
    assert not any("loadInputs" in call for call in board.called)


def test_an_engine_that_does_not_skip_says_so_from_then_on(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.run("--prove", CLOSED_MS="3.9")
    again = board.run()
    assert again.returncode == 0
    assert "gates: not skipping" in again.stderr


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_builds_nothing(tmp_path: Path, words: list[str]) -> None:
    board = Board(tmp_path)
    done = board.run(*words)
    assert done.returncode == 0
    assert "--prove" in done.stdout
    assert not board.called
    assert not board.out.exists()


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    assert Board(tmp_path).run("--fast").returncode == 2
    (tmp_path / "second").mkdir()
    assert Board(tmp_path / "second").run("one").returncode == 2


def test_a_failure_is_no_killed_build(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.run(FAIL="yes").returncode == 1
    done = board.run()
    assert done.returncode == 0
    assert "killed" not in done.stderr
    assert len(board.called) == 2


def test_trtexec_that_is_killed_is_one(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.run(OOM="yes").returncode == 1
    assert "the last build was killed" in board.run().stderr


def test_engines_of_other_kits_are_passed_over(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.out.mkdir()
    (board.out / "engine-000000000000.key").write_text("kit=sha256:other\n")
    assert "not used" not in board.run().stderr


@pytest.mark.parametrize("name", ["with blank", "-dash", "käfer", "a;b", "$(id)"])
def test_any_folder_may_be_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    board = Board(tmp_path / name)
    done = board.run(CDPATH="/tmp:/usr")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == board.out


def test_gates_that_do_not_skip_are_told(tmp_path: Path) -> None:
    done = Board(tmp_path).run("--prove", CLOSED_MS="3.9")
    assert done.returncode == 1
    assert "gates: not skipping" in done.stdout
    assert "--flavour static" in done.stderr


def test_precision_flags_of_each_generation() -> None:
    model = small_kits.SWAP.models[0]

    def options(target: str, precision: str) -> tuple[str, ...]:
        manifest = dataclasses.replace(small_kits.manifest(), precision=precision)
        return precision_options(manifest, find(target), model)

    assert options("xavier-nx-jp5.1", "fp32") == ()
    assert options("nano-jp4.6", "fp16") == ("--fp16",)
    assert options("xavier-nx-jp5.1", "fp16") == (
        "--fp16",
        "--precisionConstraints=obey",
        "--layerPrecisions=w0:fp32,w1:fp32",
    )
    assert options("orin-nano-jp6.2", "fp16") == ()


def test_a_domain_of_fixed_classes_needs_no_profile() -> None:
    fixed = dataclasses.replace(small_kits.manifest(), slots=small_kits.SLOTS[:2])
    assert shape_options(fixed) == ()


def test_segments_alone_are_refused() -> None:
    manifest = dataclasses.replace(small_kits.manifest(), flavours=(small_kits.STAGED,))
    with pytest.raises(ModelRefusedError):
        script(manifest, find(manifest.target), "sha256:0", "", 0.5)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs the program shellcheck")
def test_shellcheck_has_no_complaint(tmp_path: Path) -> None:
    path = kit(tmp_path).path / SCRIPT_NAME
    done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
