"""What is read of a machine, from file trees as boards have them and as they should not be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.boards import DPKG, NVPMODEL, ORIN_MODEL, TEGRA, orin, write
from toolchain.device.boards.machine import (
    Machine,
    available_bytes,
    first_match,
    read_machine,
    system_text,
)

NO_DRIVER = "libcuda-that-is-nowhere.so.1"


def seen(root: Path) -> Machine:
    return read_machine(root, NO_DRIVER)


@pytest.fixture(autouse=True)
def _search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/usr/bin:/bin{os.pathsep}relative")


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_an_orin_nano(tmp_path: Path) -> None:
    machine = seen(orin(tmp_path))
    assert machine.board == ORIN_MODEL
    assert (machine.l4t, machine.jetpack) == ("36.4.3", "6.2")
    assert machine.power_mode == "MAXN_SUPER"
    assert machine.tensorrt_library == "10.3.0"
    assert machine.cuda_toolkit == "12.6.11"
    assert machine.memory_bytes == 7802860 * 1024
    assert machine.free_memory_bytes == 5120000 * 1024
    assert machine.free_disk_bytes
    assert (machine.gpus, machine.driver_fault, machine.trtexec) == ((), None, None)


def test_an_empty_root_is_no_error(tmp_path: Path) -> None:
    machine = seen(tmp_path)
    nothing = ("board", "l4t", "jetpack", "power_mode", "tensorrt_library", "trtexec")
    assert [getattr(machine, name) for name in (*nothing, "cuda_toolkit", "memory_bytes")] == [
        None
    ] * 8
    assert machine.tensorrt_elsewhere == ()
    assert seen(tmp_path / "nowhere").free_disk_bytes is None


def test_this_machine() -> None:
    """The real root, with the packages that the tests run on."""
    machine = read_machine()
    onnxruntime = machine.package("onnxruntime")
    assert onnxruntime is not None
    assert onnxruntime.version
    assert "CPUExecutionProvider" in machine.providers
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.memory_bytes
    assert machine.package("nothing") is None


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 1", "32.7.1", "4.6.1"),
        ("# R32 (release), REVISION: 6.1, GCID: 1", "32.6.1", "4.6"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 4.7, GCID: 1", "36.4.7", "6.2.1"),
        ("# R38 (release), REVISION: 2.2, GCID: 42205042", "38.2.2", "7.0"),
        ("# R39 (release), REVISION: 2.1, GCID: 46758480", "39.2.1", "7.2.1"),
        ("# R99 (release), REVISION: 1.0", "99.1.0", None),
        ("R36 (release)", None, None),
    ],
)
def test_jetson_linux_and_its_jetpack(
    tmp_path: Path, line: str, l4t: str | None, jetpack: str | None
) -> None:
    machine = seen(write(tmp_path, {"etc/nv_tegra_release": line}))
    assert (machine.l4t, machine.jetpack) == (l4t, jetpack)


def test_the_package_goes_before_the_release_file(tmp_path: Path) -> None:
    """JetPack is updated by apt on the same Jetson Linux."""
    files: dict[str, str | bytes] = {"etc/nv_tegra_release": TEGRA}
    files["var/lib/dpkg/status"] = DPKG.replace("Version: 6.2+b77", "Version: 6.2.1+b38")
    assert seen(write(tmp_path, files)).jetpack == "6.2.1"
    removed = DPKG.replace("6.2+b77", "6.1+b1").replace("install ok", "deinstall ok")
    files["var/lib/dpkg/status"] = removed.replace("ok installed", "ok config-files")
    assert seen(write(tmp_path, files)).jetpack == "6.2"


def test_nvpmodel_itself_is_asked_first(tmp_path: Path) -> None:
    orin(tmp_path)
    program(tmp_path / "usr/sbin/nvpmodel", 'test "$1" = -q && echo "NV Power Mode: 25W" && echo 1')
    assert seen(tmp_path).power_mode == "25W"


def test_nvpmodel_that_may_not_be_run_leaves_its_files(tmp_path: Path) -> None:
    orin(tmp_path)
    program(tmp_path / "usr/sbin/nvpmodel", "echo 'NV Power Mode: wrong'", "exit 1")
    assert seen(tmp_path).power_mode == "MAXN_SUPER"


def test_a_power_mode_without_a_name(tmp_path: Path) -> None:
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007", "etc/nvpmodel.conf": NVPMODEL})
    assert seen(tmp_path).power_mode == "mode 7"


def test_trtexec_beside_the_search_path(tmp_path: Path) -> None:
    program(tmp_path / "usr/src/tensorrt/bin/trtexec")
    assert seen(tmp_path).trtexec == str(tmp_path / "usr/src/tensorrt/bin/trtexec")
    program(tmp_path / "usr/bin/trtexec")
    assert seen(tmp_path).trtexec == str(tmp_path / "usr/bin/trtexec")


def test_an_old_toolkit(tmp_path: Path) -> None:
    write(tmp_path, {"usr/local/cuda/version.txt": "CUDA Version 10.2.300\n"})
    assert seen(tmp_path).cuda_toolkit == "10.2.300"


def test_a_module_that_only_the_system_sees(tmp_path: Path) -> None:
    if seen(tmp_path).package("tensorrt"):
        pytest.skip("this Python has tensorrt itself")
    machine = seen(orin(tmp_path))
    assert machine.tensorrt_elsewhere == ("/usr/lib/python3.10/dist-packages",)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that this Python and its children see first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_a_module_without_metadata_is_asked_in_a_child(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    write(site, {"tensorrt/__init__.py": "__version__ = '10.3.0'\n"})
    package = seen(tmp_path).package("tensorrt")
    assert package is not None
    assert package.version == "10.3.0"
    assert "tensorrt" not in sys.modules


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.abort()",
        "raise ImportError('libnvinfer.so.8: cannot open shared object file')",
        "__version__ = '\\x1b[2J' * 100",
        "pass",
    ],
    ids=["aborts", "no-library", "control-characters", "no-version"],
)
def test_a_module_that_does_not_tell_its_version(site: Path, tmp_path: Path, body: str) -> None:
    write(site, {"tensorrt/__init__.py": body})
    package = seen(tmp_path).package("tensorrt")
    assert package is not None
    assert package.version is None


def test_a_folder_of_that_name_is_no_module(site: Path, tmp_path: Path) -> None:
    (site / "tensorrt").mkdir()
    assert seen(tmp_path).package("tensorrt") is None


def test_the_working_directory_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"onnxruntime.py": "raise SystemExit('imported from the wrong place')"})
    monkeypatch.chdir(tmp_path)
    assert "CPUExecutionProvider" in seen(tmp_path).providers


def test_a_driver_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    driver = tmp_path / "libcuda.so.1"
    driver.touch()
    machine = read_machine(tmp_path, str(driver))
    assert machine.gpus == ()
    assert "file too short" in (machine.driver_fault or "")


HOSTILE = (
    *("proc/device-tree/model", "etc/nv_tegra_release", "proc/meminfo", "var/lib/dpkg/status"),
    *("var/lib/nvpmodel/status", "etc/nvpmodel.conf", "usr/local/cuda/version.json"),
)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link-to-itself", "unreadable", "binary"])
def test_odd_files_in_place_of_the_systems(tmp_path: Path, kind: str) -> None:
    """Nothing raises and nothing waits, whatever lies there."""
    for name in HOSTILE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link-to-itself":
            path.symlink_to(path)
        else:
            path.write_bytes(bytes(range(256)) * 300)
            path.chmod(0 if kind == "unreadable" else 0o644)
    machine = seen(tmp_path)
    assert (machine.l4t, machine.jetpack, machine.power_mode) == (None, None, None)


def test_an_endless_file_is_read_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(system_text(path)) == 64 * 1024
    assert len(system_text(path, 10)) == 10
    assert system_text(Path("/dev/zero")) == ""
    assert system_text(Path("a\0b")) == ""


def test_files_of_proc_have_no_size_and_are_read() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    assert "Name:" in system_text(Path("/proc/self/status"))


@given(content=st.binary(max_size=300))
def test_any_bytes_in_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Law: what is read of files raises nothing, whatever they hold."""
    from toolchain.device.boards import machine

    root = tmp_path_factory.mktemp("any")
    write(root, dict.fromkeys(HOSTILE, content))
    l4t = machine._l4t(root)
    machine._jetpack(root, l4t)
    machine._power_mode(root)
    machine._memory(root)
    machine._toolkit(root)
    assert machine._board(root) is None or content


def test_the_first_match_is_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"b/lib.so.2": "", "b/lib.so.1": "", "b/lib.so.1x": ""})
    assert first_match(tmp_path, ("a", "b"), r"lib\.so\.(\d)") == "1"
    assert first_match(tmp_path, ("a",), r"lib\.so\.(\d)") is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is Linux's")
def test_this_machine_says_what_it_has_to_spare() -> None:
    free = available_bytes()
    assert free is not None
    assert free > 1 << 20


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MemTotal:  9 kB\nMemAvailable:    3 kB\n", 3072),
        ("MemTotal:  9 kB\n", None),
        ("MemAvailable: many kB\n", None),
        ("", None),
    ],
)
def test_what_the_system_says_is_read_or_nothing(
    text: str, free: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(text)
    assert available_bytes(tmp_path) == free
    assert available_bytes(tmp_path / "none") is None
