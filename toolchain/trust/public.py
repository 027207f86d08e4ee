"""A public key, as metadata and the folders of keys hold it.

Rules of this file: values only, and one question: whether it signed something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolchain.core.fields import Section, key, matching, printable, text

if TYPE_CHECKING:
    from securesystemslib.signer import Key, SSlibKey

KEY_ID = matching(r"[0-9a-f]{64}", "64 lower-case hex digits")
SIGNATURE = matching(r"[0-9a-f]{2,2000}", "a signature in hex")


@dataclass(frozen=True, kw_only=True)
class PublicKey(Section):
    """The public half of a key (TUF 4.2); ``public`` is hex for Ed25519, else PEM."""

    keytype: str = key(printable(40))
    scheme: str = key(printable(40))
    public: str = key(text("a public key", lambda value: 0 < len(value) <= 4000))

    def of(self, keyid: str) -> SSlibKey:
        """Return the key for python-tuf."""
        from securesystemslib.signer import SSlibKey

        return SSlibKey(keyid, self.keytype, self.scheme, {"public": self.public})

    def signed(self, keyid: str, signature: str, data: bytes) -> bool:
        """Whether ``signature`` (hex) is this key's over ``data``."""
        from securesystemslib.exceptions import UnverifiedSignatureError
        from securesystemslib.signer import Signature

        try:
            self.of(keyid).verify_signature(Signature(keyid, signature), data)
        except UnverifiedSignatureError:
            return False
        return True


def public_key(of: Key) -> dict[str, str]:
    """Return the fields of :class:`PublicKey` for a key of python-tuf."""
    public: str = of.keyval["public"]
    return {"keytype": of.keytype, "scheme": of.scheme, "public": public}
