"""Signed releases, sites and folders of keys are recognised and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.trusted import CARS, RESNET, Publisher
from toolchain.cli import root
from toolchain.core.errors import MalformedError
from toolchain.inspect import inspect
from toolchain.trust import KeyringFacts, MetadataFacts, SiteFacts


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    publisher = Publisher(tmp_path_factory.mktemp("publisher"))
    publisher.init("cars")
    backbone = publisher.sign(publisher.backbone(), RESNET)
    publisher.publish(backbone, publisher.sign(publisher.bundle(), CARS))
    return publisher


def said(path: Path, *words: str) -> str:
    result = CliRunner().invoke(root, ["inspect", str(path), *words], prog_name="da3")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_signed_release(published: Publisher) -> None:
    path = published.dist / "cars.release.json"
    inspection = inspect(path)
    assert (inspection.kind, inspection.path) == ("metadata", path)
    assert isinstance(inspection.facts, MetadataFacts)
    assert inspection.facts.role == "domains/cars"
    shown = said(path)
    for words in ("number 1", "bundle.json", "resnet20", "2027-06-01", "not checked"):
        assert words in shown
    assert json.loads(said(path, "--json"))["facts"]["release"]["counter"] == 1


def test_a_withdrawal(published: Publisher) -> None:
    path = published.sign(published.bundle(), CARS, withdraw=True)
    assert "number 2: the unit is withdrawn" in said(path)
    published.sign(published.bundle(), CARS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1.root.json", "trusted keys"),
        ("1.targets.json", "domain-cars"),
        ("1.snapshot.json", "backbone-resnet20"),
        ("timestamp.json", "published   2026-06-01T12:00:00Z"),
    ],
)
def test_the_metadata_of_each_role(published: Publisher, name: str, words: str) -> None:
    assert words in said(published.metadata(name))


def test_a_site(published: Publisher) -> None:
    inspection = inspect(published.site)
    assert inspection.kind == "site"
    assert isinstance(inspection.facts, SiteFacts)
    assert [str(one.unit) for one in inspection.facts.releases] == [str(RESNET), str(CARS)]
    assert "domains/cars" in said(published.site)


def test_a_folder_of_keys_and_nothing_secret_in_it(published: Publisher) -> None:
    inspection = inspect(published.keys)
    assert inspection.kind == "keyring"
    assert isinstance(inspection.facts, KeyringFacts)
    shown = said(published.keys) + said(published.keys, "--json")
    assert "2 of 3" in shown
    for pem in published.keys.rglob("*.pem"):
        assert pem.read_text().splitlines()[1] not in shown


@pytest.mark.parametrize(
    "data", ['{"signatures":[]}', '{"signatures":[],"signed":{"_type":"root"}}']
)
def test_what_only_looks_like_metadata(tmp_path: Path, data: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(data)
    with pytest.raises(MalformedError):
        inspect(path)
