"""``da3 device``: what a person types, what is printed, and how it ends."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.fielded import ToyPublisher
from tests.support.stored import BACKBONE, BUNDLES
from toolchain.cli.verbs.device import device
from toolchain.device.store.store import Store


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> ToyPublisher:
    """Its site is valid now, by the system's clock."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    made = ToyPublisher(tmp_path_factory.mktemp("publisher") / "home", now)
    made.begin()
    return made


@pytest.fixture
def store(publisher: ToyPublisher, tmp_path: Path) -> Path:
    """A device that knows the repository; nothing is installed."""
    root = publisher.keys / "metadata" / "1.root.json"
    url = f"file://{publisher.site}"
    done(tmp_path / "device", "init", "--root", str(root), "--repository", url)
    return tmp_path / "device"


def invoke(store: Path, *words: str) -> Result:
    return CliRunner().invoke(device, [*words, "--store", str(store)], prog_name="da3 device")


def done(store: Path, *words: str) -> Result:
    result = invoke(store, *words)
    assert result.exit_code == 0, result.output
    return result


def document(store: Path, *words: str, code: int = 0) -> dict[str, Any]:
    result = invoke(store, *words, "--json")
    assert result.exit_code == code, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_by_hand_from_nothing_to_a_rollback(store: Path) -> None:
    assert "nothing is installed" in done(store, "status").stdout
    assert document(store, "install", "sample") == {"unit": "domains/sample"}
    # It is installed, and runs only when it is told to.
    assert not [unit for unit in document(store, "status")["units"] if unit["runs"]]
    assert document(store, "activate", "sample") == {"active": "sample"}
    done(store, "install", "patched")
    assert "patched: runs" in done(store, "activate", "patched").stdout
    runs = {unit["unit"] for unit in document(store, "status")["units"] if unit["runs"]}
    assert runs == {"backbones/toy", "domains/sample", "domains/patched"}
    refused = invoke(store, "rollback", "sample")
    assert refused.exit_code == 2
    assert "domains/patched" in refused.stderr
    assert document(store, "rollback", "patched") == {"units": ["domains/patched"]}
    done(store, "remove", "sample")
    runs = {unit["unit"] for unit in document(store, "status")["units"] if unit["runs"]}
    assert runs == {"backbones/toy"}
    assert document(store, "verify")["ok"]
    lines = done(store, "history").stdout.splitlines()
    assert [line.split()[1] for line in lines][:2] == ["CREATED", "FLOORS"]
    assert "COMMITTED" in done(store, "history").stdout


def test_an_update_that_is_not_well_ends_with_5(store: Path) -> None:
    path = store / "policy.json"
    policy = json.loads(path.read_bytes())
    policy["health"]["command"] = ["/bin/false"]
    path.write_text(json.dumps(policy))
    done(store, "install", "sample")
    result = invoke(store, "activate", "sample")
    assert result.exit_code == 5
    assert "went back: /bin/false: ended with 1" in result.stderr
    assert "fix:" in result.stderr
    assert "/bin/false" in done(store, "status").stdout
    assert document(store, "status")["failed"].keys() == {"backbones/toy", "domains/sample"}


def test_the_agent_goes_round_once(store: Path) -> None:
    path = store / "policy.json"
    policy = json.loads(path.read_bytes())
    path.write_text(json.dumps({**policy, "domains": ["sample", "tulips"]}))
    result = done(store, "agent", "--once")
    assert "domains/sample: changed" in result.stdout
    assert "domains/tulips: stays: the repository has no release of it" in result.stdout
    answer = document(store, "agent", "--once")
    assert answer["round"]["changed"] == []
    assert answer["next_s"] == 3600
    assert document(store, "gc")["report"]["removed"] == []
    assert document(store, "recover")["recovery"]["current"] == 1


def test_damage_is_found_and_ends_with_4(store: Path) -> None:
    done(store, "install", "sample")
    (bundle,) = store.glob("rel/*/bundle.da3b")
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.chmod(0o644)
    bundle.write_bytes(data)
    result = invoke(store, "verify")
    assert result.exit_code == 4
    assert "WRONG" in result.stdout


def test_an_unsigned_device_by_hand(tmp_path: Path) -> None:
    store = tmp_path / "device"
    done(store, "init", "--unsigned")
    # The backbone comes first.
    early = invoke(store, "install", str(BUNDLES / "sample.da3b"))
    assert early.exit_code == 1
    assert "backbone" in early.stderr
    done(store, "install", str(BACKBONE))
    result = done(store, "install", str(BUNDLES / "sample.da3b"))
    assert "WARNING" in result.stderr
    done(store, "activate", "sample")
    assert "NOT SIGNED" in done(store, "status").stdout
    # Nothing is known of a repository.
    missing = invoke(store, "install", "sample")
    assert missing.exit_code == 2
    assert "repository" in missing.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("init", "--repository", "https://example.org"), 2, "--root"),
        (("init", "--repository", "ftp://example.org", "--unsigned"), 1, "file://"),
        (("init", "--root", "missing.json"), 1, "missing.json"),
        (("status",), 1, "da3 device init"),
        (("install", "sample"), 1, "da3 device init"),
        (("agent", "--once"), 1, "da3 device init"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, words: tuple[str, ...], code: int, text: str) -> None:
    result = invoke(tmp_path / "device", *words)
    assert result.exit_code == code
    assert text in result.stderr
    assert not (tmp_path / "device" / "state.json").exists()


def test_names_that_the_repository_does_not_have(store: Path) -> None:
    result = invoke(store, "install", "sampel")
    assert result.exit_code in (2, 4)
    assert "sampel" in result.stderr
    assert invoke(store, "activate", "sample").exit_code == 1
    assert invoke(store, "remove", "sample").exit_code == 2
    assert invoke(store, "rollback").exit_code == 1


def test_somebody_else_at_work_is_named(store: Path) -> None:
    with Store.open(store).writing():
        for words in (("install", "sample"), ("agent", "--once"), ("gc",)):
            result = invoke(store, *words)
            assert result.exit_code == 1
            assert "another one at work there: process" in result.stderr
