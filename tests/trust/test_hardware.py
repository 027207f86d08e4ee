"""Keys on a token: a real software token (softhsm2), through PKCS#11."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from tests.support.trusted import CARS, NOW, PIN, Device, Publisher
from toolchain.core import errors
from toolchain.trust import ceremonies, faults, hardware, keyring, sign
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf

URI = "pkcs11:token=da3;id=%02"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token with a key of P-256 under the id 2; the path of its library."""
    library = next((path for path in LIBRARIES if Path(path).is_file()), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not installed")
    if find_spec("pkcs11") is None:
        pytest.skip("python-pkcs11 is not installed (the extra hsm)")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(configuration))
    patch.setenv("PYKCS11LIB", library)
    words = ["--init-token", "--free", "--label", "da3", "--pin", PIN, "--so-pin", PIN]
    subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)

    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with pkcs11.lib(library).get_token(token_label="da3").open(rw=True, user_pin=PIN) as session:
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
            local=True,
        )
        curve.generate_keypair(id=bytes([2]), label="cars", store=True)
    return library


@pytest.fixture
def on_token(publisher: Publisher, token: str) -> Publisher:
    """A publisher whose domain cars is signed for by the token."""
    publisher.ceremony(partial(ceremonies.rotate, uri=URI), "domains/cars")
    return publisher


def test_a_release_is_signed_by_a_token(on_token: Publisher, device: Device) -> None:
    (facts,) = [one for one in keyring.show(on_token.keys).roles if one.role == "domains/cars"]
    assert [(key.scheme, key.where) for key in facts.keys] == [("ecdsa-sha2-nistp256", URI)]
    assert not list((on_token.keys / "domains" / "cars").glob("*.pem"))
    on_token.publish(on_token.sign(on_token.bundle(), CARS))
    assert device.look(NOW, units=[CARS]).releases["domains/cars"].counter == 2


def test_a_root_on_a_token_signs_beside_files(
    publisher: Publisher, device: Device, token: str
) -> None:
    device.look(NOW)
    first = keyfiles.records(publisher.keys / "root")[0].keyid[:12]
    publisher.ceremony(partial(ceremonies.rotate, uri=URI), f"root/{first}")
    publisher.ceremony(ceremonies.renew)
    publisher.publish()
    assert device.look(NOW).floors.metadata["root"] == 3


def test_a_device_without_cryptography_says_so(
    on_token: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package a signature of a token counts as a wrong one; the error names it."""
    on_token.publish(on_token.sign(on_token.bundle(), CARS))
    device.look(NOW)
    monkeypatch.setattr(faults, "find_spec", lambda _: None)
    role = tuf.read(Targets, on_token.metadata("1.domain-cars.json").read_bytes(), "").signed
    role.version = 3
    on_token.republish(domain_cars=on_token.forged(role, "domains/flowers"))
    with pytest.raises(errors.MissingPackageError, match="cryptography"):
        device.look(NOW, units=[CARS])


def test_a_wrong_pin_signs_nothing(on_token: Publisher) -> None:
    with pytest.raises(errors.SigningError, match="cannot sign"):
        sign(
            on_token.bundle(), on_token.keys / "domains" / "cars", passphrase=lambda _: "0", now=NOW
        )


def test_a_key_that_is_not_on_the_token(token: str) -> None:
    with pytest.raises(errors.SigningError, match="cannot use the key"):
        hardware.public_key("pkcs11:token=da3;id=%09", lambda: PIN)
    with pytest.raises(errors.SigningError, match="cannot use the key"):
        hardware.public_key("pkcs11:token=other;id=%02", lambda: PIN)


@pytest.mark.parametrize(
    "uri",
    ["", "file:key.pem", "pkcs11:", "pkcs11:token=da3", "pkcs11:id=%02;slot=1", "hsm:2", "gpg:1"],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(errors.UsageError):
        hardware.public_key(uri, lambda: PIN)


@pytest.mark.parametrize(
    "uri",
    ["gcpkms:projects/p/x", "awskms:arn:x", "azurekms://v.vault.azure.net/keys/k/1", "hv:k/1"],
)
def test_a_service_without_its_client_names_what_to_install(uri: str) -> None:
    with pytest.raises(errors.SigningError, match="install the client"):
        hardware.public_key(uri, lambda: PIN)
