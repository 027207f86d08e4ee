"""The unit of the agent: what systemd itself says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from toolchain.core.errors import UsageError
from toolchain.device.agent.service import unit_text

WORST = 2.5
"""Exposure as `systemd-analyze security` counts it: 10 is unprotected, up to 4.9 is "OK"."""


def analyze(*words: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed here")
    ended = subprocess.run([program, *words], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    return ended.stdout


@pytest.mark.parametrize("store", ["/var/lib/da3", "/srv/a store with 100%"])
def test_systemd_takes_it(tmp_path: Path, store: str) -> None:
    path = tmp_path / "da3-agent.service"
    path.write_text(unit_text(Path(store), "daemon"))
    analyze("verify", str(path))
    text = analyze("security", "--offline=true", "--no-pager", str(path))
    exposure = re.search(r"Overall exposure level for [^:]*: ([0-9.]+)", text)
    assert exposure is not None, text
    assert float(exposure[1]) <= WORST


def test_it_names_user_store_and_command() -> None:
    text = unit_text(Path("/srv/a store with 100%"), "da3")
    assert "\nUser=da3\n" in text
    assert '\nReadWritePaths="/srv/a store with 100%%"\n' in text
    assert '-m toolchain device agent --store "/srv/a store with 100%%"\n' in text
    assert "{" not in text


@pytest.mark.parametrize("user", ["root", "", "a b", "x\nExecStart=/bin/sh", "Ä"])
def test_a_user_who_must_not_be(user: str) -> None:
    with pytest.raises(UsageError, match="not root"):
        unit_text(Path("/var/lib/da3"), user)


@pytest.mark.parametrize("store", ['/a"b', "/a\\b", "/a\nExecStart=/bin/sh"])
def test_a_path_that_no_unit_can_name(store: str) -> None:
    with pytest.raises(UsageError, match="without quotes"):
        unit_text(Path(store), "da3")
