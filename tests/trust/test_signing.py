"""Signing: only what is whole, only with the unit's own key, and no number twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_kits import FILES, manifest
from tests.support.trusted import CARS, NOW, RESNET, Device, Publisher, passphrase
from toolchain.bundle import open_backbone
from toolchain.core import errors
from toolchain.device.engine.kit import Kit, write_kit
from toolchain.trust import blob_place, manifest_place
from toolchain.trust import keys as keyfiles


def kit_of(publisher: Publisher, target: str = "xavier-nx-jp5.1", precision: str = "fp32") -> Kit:
    """Write a kit of the published backbone beside it."""
    backbone = open_backbone(publisher.backbone()).manifest
    made = manifest(target, precision)
    plain = type(made)(
        **{
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "gates": (),
            "flavours": made.flavours[:1],
        }
    )
    return write_kit(publisher.dist, plain, backbone, FILES, overwrite=True)


def test_a_counter_never_repeats(publisher: Publisher) -> None:
    publisher.sign(publisher.bundle(), CARS, counter=7)
    for counter in (1, 7):
        with pytest.raises(errors.SigningError, match="above 7"):
            publisher.sign(publisher.bundle(), CARS, counter=counter)
    publisher.sign(publisher.bundle(), CARS)
    issued = keyfiles.read_issued(publisher.keys / "domains" / "cars")
    assert [issue.counter for issue in issued.releases] == [1, 7, 8]


def test_a_counter_is_gone_though_the_release_was_never_written(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolchain.trust import signing

    def cut(*_: object, **__: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(signing, "write_atomic", cut)
        with pytest.raises(OSError, match="cut off"):
            publisher.sign(publisher.bundle(), CARS)
    publisher.publish(publisher.sign(publisher.bundle(), CARS))
    assert keyfiles.read_issued(publisher.keys / "domains" / "cars").last == 3


def test_a_damaged_bundle_is_not_signed(publisher: Publisher) -> None:
    path = publisher.bundle()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.BundleError):
        publisher.sign(path, CARS)
    assert keyfiles.read_issued(publisher.keys / "domains" / "cars").last == 1


def test_a_key_signs_its_own_unit_only(publisher: Publisher) -> None:
    with pytest.raises(errors.SigningError, match="expected a key of domains/flowers"):
        publisher.sign(publisher.bundle("flowers"), CARS)
    with pytest.raises(errors.SigningError, match="got one of timestamp"):
        from toolchain.trust import sign

        sign(publisher.bundle(), publisher.keys / "timestamp", passphrase=passphrase, now=NOW)


def test_a_wrong_passphrase_signs_nothing_and_is_not_shown(publisher: Publisher) -> None:
    from toolchain.trust import sign

    with pytest.raises(errors.SigningError, match="passphrase") as caught:
        sign(
            publisher.bundle(),
            publisher.keys / "domains" / "cars",
            passphrase=lambda _: "quite another one",
            now=NOW,
        )
    assert "quite another one" not in str(caught.value)


def test_a_private_file_that_others_may_read_is_refused(publisher: Publisher) -> None:
    (pem,) = (publisher.keys / "domains" / "cars").glob("*.pem")
    pem.chmod(0o640)
    with pytest.raises(errors.SigningError, match="chmod 600"):
        publisher.sign(publisher.bundle(), CARS)


def test_a_backbone_is_released_with_its_kits(publisher: Publisher, device: Device) -> None:
    kits = [kit_of(publisher), kit_of(publisher, "orin-nano-jp6.2")]
    publisher.publish(publisher.sign(publisher.backbone(), RESNET, kits=kits))
    release = device.look(NOW).release(RESNET)
    assert release is not None
    assert [file.name for file in release.files] == [
        "backbone.json",
        "kit-orin-nano-jp6.2.json",
        "kit-xavier-nx-jp5.1.json",
    ]
    for kit in kits:
        file = release.file(f"kit-{kit.manifest.target}.json")
        assert file is not None
        assert file.digest == kit.digest
        assert (publisher.site / manifest_place(RESNET, file.name, file.digest)).is_file()
        for entry in kit.manifest.files:
            assert (publisher.site / blob_place(entry.digest)).is_file()


def test_a_kit_that_is_not_beside_its_release_is_named(publisher: Publisher) -> None:
    kit = kit_of(publisher)
    path = publisher.sign(publisher.backbone(), RESNET, kits=[kit])
    kit.path.rename(publisher.home / "elsewhere")
    with pytest.raises(errors.DataError, match="put the kit that was signed beside"):
        publisher.publish(path)


def test_kits_that_do_not_belong_are_refused(publisher: Publisher, tmp_path: Path) -> None:
    from tests.support.small_kits import backbone

    folder = tmp_path / "kits"
    folder.mkdir()
    other = write_kit(folder, manifest(), backbone(), FILES)
    with pytest.raises(errors.UsageError, match="of another backbone"):
        publisher.sign(publisher.backbone(), RESNET, kits=[other])
    twice = [kit_of(publisher), kit_of(publisher, precision="fp16")]
    with pytest.raises(errors.UsageError, match=r"one kit for xavier-nx-jp5\.1, got two"):
        publisher.sign(publisher.backbone(), RESNET, kits=twice)
    with pytest.raises(errors.UsageError, match="kits with a backbone"):
        publisher.sign(publisher.bundle(), CARS, kits=twice[:1])


def test_a_unit_is_withdrawn(publisher: Publisher, device: Device) -> None:
    publisher.publish(publisher.sign(publisher.bundle(), CARS, withdraw=True))
    release = device.look(NOW).release(CARS)
    assert release is not None
    assert release.withdrawn
    assert release.counter == 2
    with pytest.raises(errors.WrongReleaseError, match="which withdraws it"):
        _ = release.manifest
    publisher.release(version="3.0")
    again = device.look(NOW).release(CARS)
    assert again is not None
    assert not again.withdrawn


def test_what_is_neither_bundle_nor_backbone(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="got nothing"):
        publisher.sign(tmp_path / "nothing", CARS)


def test_a_passphrase_comes_from_file_environment_or_question(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(kind: str) -> str:
        asked.append(kind)
        return f"{kind} from a person"

    file = tmp_path / "secret"
    file.write_text("from a file\nsecond line\n")
    environment = {"DA3_KEY_PASSPHRASE": "from the environment", "DA3_KEY_PIN": "1234"}
    by_file = keyfiles.passphrase_from(file, environment, ask)
    assert (by_file("passphrase"), by_file("PIN")) == ("from a file", "1234")
    assert keyfiles.passphrase_from(None, environment, ask)("passphrase") == "from the environment"
    person = keyfiles.passphrase_from(None, {}, ask)
    assert [person("passphrase"), person("passphrase")] == ["passphrase from a person"] * 2
    assert person("PIN") == "PIN from a person"
    assert asked == ["passphrase", "PIN"]
