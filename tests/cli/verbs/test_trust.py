"""``da3 keys``, ``da3 sign`` and ``da3 publish``: the commands, as a user types them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.toy_export import invoke
from tests.support.trusted import PASSPHRASE, Device, Publisher
from toolchain.cli import root


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


def test_every_ceremony_by_its_command(home: Publisher) -> None:
    answer("keys", "init", "keys", "--domain", "cars")
    answer("keys", "add", "keys", "--backbone", "resnet20")
    before = {role["role"]: role["keys"] for role in answer("keys", "show", "keys")["roles"]}
    for role in ("root", "targets", "snapshot", "timestamp", "fleet", "domains/cars"):
        answer("keys", "rotate", "keys", role)
    answer("keys", "renew", "keys")
    after = {role["role"]: role["keys"] for role in answer("keys", "show", "keys")["roles"]}
    same = [name for name in before if before[name] == after[name]]
    assert same == ["backbones/resnet20"]
    rest = answer("keys", "revoke", "keys", "--domain", "cars")["roles"]
    assert "domains/cars" not in {role["role"] for role in rest}


def test_a_withdrawn_domain_and_one_that_is_published_again(home: Publisher) -> None:
    answer("keys", "init", "keys", "--domain", "cars")
    home.dist.mkdir()
    bundle = str(home.bundle())
    answer("sign", bundle, "--key", "keys/domains/cars")
    first = answer("publish", "site", "--keys", "keys", bundle)
    assert first["missing"] == ["resnet20"]
    assert answer("publish", "site", "--keys", "keys", bundle)["same"] == ["domains/cars"]
    signed = answer("sign", bundle, "--key", "keys/domains/cars", "--withdraw")
    assert signed["release"]["files"] == []
    shown = invoke("publish", "site", "--keys", "keys", signed["path"]).stdout
    assert "domains/cars, number 2, withdrawn" in shown
    soon = str(home.bundle(version="2.0"))
    answer("sign", soon, "--key", "keys/domains/cars", "--expires", "9")
    shown = invoke("publish", "site", "--keys", "keys", soon).stdout
    assert "missing  the backbone resnet20" in shown
    assert "sign again before it expires: domains/cars" in shown
    assert "same     domains/cars" in invoke("publish", "site", "--keys", "keys", soon).stdout


def test_the_passphrase_comes_from_a_file(home: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.home / "secret").write_text("another passphrase\n")
    answer("keys", "init", "keys", "--domain", "cars", "--passphrase-file", "secret")
    wrong = invoke("keys", "rotate", "keys", "timestamp")
    assert wrong.exit_code == 1
    assert "--passphrase-file FILE" in wrong.stderr
    answer("keys", "rotate", "keys", "timestamp", "--passphrase-file", "secret")


def test_the_passphrase_is_asked_for_and_a_new_one_twice(
    home: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DA3_KEY_PASSPHRASE")
    typed = f"{PASSPHRASE}\n{PASSPHRASE}\n"
    done = CliRunner().invoke(root, ["keys", "init", "keys"], input=typed)
    assert done.exit_code == 0, done.output
    assert PASSPHRASE not in done.output
    again = CliRunner().invoke(root, ["keys", "renew", "keys"], input=f"{PASSPHRASE}\n")
    assert again.exit_code == 0, again.output


def test_one_unit_is_named(home: Publisher) -> None:
    answer("keys", "init", "keys")
    result = invoke("keys", "add", "keys")
    assert result.exit_code == 2
    assert "--domain NAME, or --backbone NAME" in result.stderr


def test_people_see_roles_keys_and_expiries(home: Publisher) -> None:
    result = invoke("keys", "init", "keys", "--domain", "cars")
    assert result.exit_code == 0
    shown = invoke("keys", "show", "keys").stdout
    assert shown == result.stdout
    assert "2 of 3" in shown
    assert "domains/cars" in shown
