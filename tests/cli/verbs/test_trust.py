"""``da3 keys``, ``da3 sign`` and ``da3 publish``: the commands, as a user types them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy_export import invoke
from tests.support.trusted import PASSPHRASE, Device, Publisher


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DA3_KEY_PASSPHRASE", PASSPHRASE)
    return Publisher(tmp_path)


def answer(*words: str) -> Any:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def test_from_the_first_ceremony_to_a_device(home: Publisher) -> None:
    answer("keys", "init", "keys", "--domain", "cars", "--backbone", "resnet20")
    home.dist.mkdir()
    bundle, backbone = str(home.bundle()), str(home.backbone())
    signed = answer("sign", bundle, "--key", "keys/domains/cars")
    assert signed["release"]["counter"] == 1
    other = answer("sign", backbone, "--key", "keys/backbones/resnet20", "--expires", "30")
    done = answer("publish", "site", "--keys", "keys", signed["path"], other["path"])
    assert [one["unit"]["name"] for one in done["releases"]] == ["cars", "resnet20"]
    device = Device(home.home / "trust", home.root, home.site)
    assert set(device.look(datetime.now(timezone.utc)).releases) == {
        "domains/cars",
        "backbones/resnet20",
    }


def test_people_see_roles_keys_and_expiries(home: Publisher) -> None:
    result = invoke("keys", "init", "keys", "--domain", "cars")
    assert result.exit_code == 0
    shown = invoke("keys", "show", "keys").stdout
    assert shown == result.stdout
    assert "2 of 3" in shown
    assert "domains/cars" in shown
