"""Keys that never leave a token or a service: PKCS#11 and key management services, by URI.

Rules of this file: securesystemslib's signers do the work; here a URI is read and a fault gets a
message. ``pkcs11:token=NAME;id=%02`` (RFC 7512) names a key on a token; the library of the token is
named by the environment, ``PYKCS11LIB``. The URIs of services are those of securesystemslib
(``gcpkms:``, ``awskms:``, ``azurekms:``, ``hv:``). Tokens hold ECDSA keys on P-256 or P-384: who
verifies these needs `cryptography`, while Ed25519 needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode

from toolchain.core.errors import Da3Error, MissingPackageError, SigningError, UsageError
from toolchain.core.fields import show

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

_SCHEMES = ("pkcs11", "gcpkms", "awskms", "azurekms", "hv")


def public_key(uri: str, ask: Callable[[], str]) -> tuple[str, Key]:
    """Return the URI under which a key is found again, and its public half.

    ``ask`` gives the PIN where a token wants one. Raises UsageError for a URI of no kind that is
    known, SigningError where no such key can be reached, MissingPackageError.
    """
    scheme = _scheme(uri)
    try:
        found, public = _IMPORTS[scheme](uri, ask)
    except Exception as err:
        raise _told(uri, err) from err
    return (uri if scheme == "pkcs11" else found), public


def signer(uri: str, public: Key, ask: Callable[[], str]) -> Signer:
    """Return the signer of a key on a token or in a service. Raises as :func:`public_key`."""
    from securesystemslib.signer import Signer

    _scheme(uri)
    try:
        plain = _hsm_uri(uri) if uri.startswith("pkcs11:") else uri
        return Signer.from_priv_key_uri(plain, public, lambda _: ask())
    except Exception as err:
        raise _told(uri, err) from err


def _scheme(uri: str) -> str:
    scheme = uri.partition(":")[0]
    if scheme not in _SCHEMES:
        raise UsageError(
            f"expected a URI that begins with {', '.join(_SCHEMES)}, got {show(uri)}",
            fix="pkcs11:token=NAME;id=%02 is the key 2 of a token",
        )
    return scheme


def _parts(uri: str) -> tuple[int, str | None]:
    """Return id and token of a PKCS#11 URI (RFC 7512, section 2.3)."""
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    fields = dict(part.partition("=")[::2] for part in path.split(";") if part)
    strange = sorted({*fields} - {"token", "id", "object", "type"})
    if strange or "id" not in fields or parse_qsl(query):
        raise UsageError(
            f"expected pkcs11:token=NAME;id=%02, got {show(uri)}",
            fix="name the library of the token by PYKCS11LIB, and its key by id",
        )
    token = unquote(fields["token"]) if "token" in fields else None
    return int.from_bytes(unquote_to_bytes(fields["id"]), "big"), token


def _hsm_uri(uri: str) -> str:
    """Return the URI of securesystemslib's HSMSigner for a PKCS#11 URI."""
    number, token = _parts(uri)
    return f"hsm:{number}" + ("" if token is None else f"?{urlencode({'label': token})}")


def _from_token(uri: str, ask: Callable[[], str]) -> tuple[str, Key]:
    from securesystemslib.signer import HSMSigner

    number, token = _parts(uri)
    return HSMSigner.import_(number, token, lambda _: ask())


def _from_google(uri: str, _ask: Callable[[], str]) -> tuple[str, Key]:
    from securesystemslib.signer import GCPSigner

    return GCPSigner.import_(uri.removeprefix("gcpkms:"))


def _from_amazon(uri: str, _ask: Callable[[], str]) -> tuple[str, Key]:
    from securesystemslib.signer import AWSSigner

    return AWSSigner.import_(uri.removeprefix("awskms:"))


def _from_azure(uri: str, _ask: Callable[[], str]) -> tuple[str, Key]:
    from securesystemslib.signer import AzureSigner

    vault, _, rest = uri.removeprefix("azurekms://").partition(".vault.azure.net/keys/")
    return AzureSigner.import_(vault, rest.partition("/")[0])


def _from_vault(uri: str, _ask: Callable[[], str]) -> tuple[str, Key]:
    from securesystemslib.signer import VaultSigner

    return VaultSigner.import_(uri.removeprefix("hv:").partition("/")[0])


_IMPORTS: dict[str, Callable[[str, Callable[[], str]], tuple[str, Key]]] = {
    "pkcs11": _from_token,
    "gcpkms": _from_google,
    "awskms": _from_amazon,
    "azurekms": _from_azure,
    "hv": _from_vault,
}


def _told(uri: str, err: Exception) -> Exception:
    """Return the error for what a token, a service or its library has said."""
    from securesystemslib.exceptions import UnsupportedLibraryError

    if isinstance(err, Da3Error):
        return err
    if isinstance(err, UnsupportedLibraryError):
        if uri.startswith("pkcs11:"):
            return MissingPackageError("python-pkcs11", "a key on a token", "hsm")
        return SigningError(
            f"{uri}: {err}",
            fix="install the client of that service as securesystemslib names it, such as "
            "pip install 'securesystemslib[gcpkms]'",
        )
    return SigningError(
        f"cannot use the key {uri}: {err or type(err).__name__}",
        fix="check the token or the service, its PIN, and PYKCS11LIB",
    )
