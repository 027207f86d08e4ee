"""Looks at a trial: commands, addresses and self-tests, and what takes too long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mirror import serving
from toolchain.core.errors import SelftestError
from toolchain.device.agent.health import look
from toolchain.device.agent.policy import Health
from toolchain.device.agent.power import on_battery


def well() -> None:
    pass


def ill() -> None:
    raise SelftestError("another class in 3 of 12 cases")


def python(program: str) -> Health:
    return Health(command=(sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("health", "selftest", "words"),
    [
        (Health(), well, ""),
        (Health(), ill, "another class"),
        (python("pass"), ill, ""),
        (python("import sys; sys.exit('no camera')"), well, "ended with 1: no camera"),
        (python("import time; time.sleep(60)"), well, "took longer"),
        (Health(command=("/nowhere/check",)), well, "No such file"),
        (Health(url="http://127.0.0.1:1/health"), well, "127.0.0.1"),
    ],
)
def test_what_a_look_finds(health: Health, selftest: Callable[[], None], words: str) -> None:
    looked = look(health, selftest, limit_s=2)
    assert looked.well == (not words)
    assert words in looked.reason


def test_an_address_is_well_where_it_answers_with_a_2xx(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("ok")
    with serving(tmp_path) as (url, link):
        assert look(Health(url=f"{url}/health"), ill).well
        assert "answered 404" in look(Health(url=f"{url}/other"), ill).reason
        link.status = 503
        assert "answered 503" in look(Health(url=f"{url}/health"), ill).reason


def test_a_command_and_an_address_must_both_be_well(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        health = Health(command=(sys.executable, "-c", "pass"), url=f"{url}/missing")
        assert "404" in look(health, well).reason


def supply(folder: Path, name: str, **files: str) -> None:
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(f"{text}\n")


def test_a_device_runs_on_its_battery(tmp_path: Path) -> None:
    assert not on_battery(tmp_path / "none")
    # The battery of a keyboard is not the device's.
    supply(tmp_path, "hid", type="Battery", scope="Device")
    assert not on_battery(tmp_path)
    supply(tmp_path, "BAT0", type="Battery")
    assert on_battery(tmp_path)
    supply(tmp_path, "AC", type="Mains", online="0")
    assert on_battery(tmp_path)
    (tmp_path / "AC" / "online").write_text("1\n")
    assert not on_battery(tmp_path)
