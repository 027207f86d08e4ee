"""Digests: what two tensors, two checkpoints or two documents must share to be the same thing.

Rules of this file: numpy and the standard library only; pure functions of bytes and values; it
opens no file. A digest is always written ``sha256:<64 lower-case hex digits>``, so that it names
its algorithm. An array is hashed as little-endian C-order bytes, whatever machine or memory layout
it comes from. Nothing here is signed: a digest names bytes, it does not vouch for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any

from toolchain.core.canonical import canonical_json
from toolchain.core.errors import Da3Error, WeightsError

if TYPE_CHECKING:
    import numpy.typing as npt

Bytes = bytes | bytearray | memoryview
DIGEST_PATTERN = r"sha256:[0-9a-f]{64}"
_DIGEST = re.compile(DIGEST_PATTERN)
_NUMBER_KINDS = "biuf"
# To start a thread costs as much as hashing about this many bytes.
_WORTH_A_THREAD_BYTES = 1 << 20


def sha256(data: Bytes) -> str:
    """Digest of ``data`` as ``sha256:<64 hex>`` (FIPS 180-4)."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def headed(body: bytes) -> bytes:
    """Return a file that tells of damage by itself: the digest of ``body`` on a line, and it."""
    return f"{sha256(body)}\n".encode() + body


def headed_body(data: bytes) -> bytes | None:
    """Return what :func:`headed` was given; None where it is not what its digest says."""
    digest, _, body = data.partition(b"\n")
    return body if sha256(body).encode() == digest else None


class BackgroundDigests:
    """Digests of several parts; another thread computes them while the caller goes on.

    The two run at once because hashlib releases the interpreter's lock for more than 2 kB. Whoever
    asks for the result helps to finish it. Few bytes are hashed only when it is asked for: a thread
    would cost more.
    """

    def __init__(self, parts: Sequence[Bytes]) -> None:
        self._parts = parts
        self._digests = [""] * len(parts)
        # next() on one iterator is atomic, so the two threads never take the same part. The
        # largest parts come first, so that neither waits long for the other at the end.
        self._waiting = iter(sorted(range(len(parts)), key=lambda place: -len(parts[place])))
        self._thread: Thread | None = None
        if sum(map(len, parts)) >= _WORTH_A_THREAD_BYTES:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()

    def result(self) -> list[str]:
        """Return the digest of each part, in order."""
        self._work()
        if self._thread is not None:
            self._thread.join()
        return self._digests

    def _work(self) -> None:
        for place in self._waiting:
            self._digests[place] = sha256(self._parts[place])


def tensor_digest(array: npt.NDArray[Any]) -> str:
    """Digest of the elements of an array of any shape, as little-endian C-order bytes.

    Shape and dtype are not part of it: compare those as well, as :func:`weights_digest` does.
    Raises WeightsError for arrays that do not hold plain numbers.
    """
    if array.dtype.kind not in _NUMBER_KINDS:
        raise WeightsError(
            f"expected an array of booleans, integers or floats, got dtype {array.dtype}",
            fix="convert the tensor to a numeric dtype before it is stored",
        )
    plain = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return sha256(plain.reshape(-1).view("u1").data)


def weights_digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Digest of a set of named tensors, independent of the order in which they are given.

    It is the sha256 over the RFC 8785 JSON of ``[[name, dtype, shape, tensor digest], ...]``
    sorted by name (code points), dtype as numpy names it (``float32``), shape as integers.
    """
    rows = [
        [name, array.dtype.name, list(array.shape), tensor_digest(array)]
        for name, array in sorted(tensors.items())
    ]
    return sha256(canonical_json(rows))


def short(digest: str) -> str:
    """Return the first 12 hex digits of ``digest``, for names and messages; never compare by it.

    Raises Da3Error for what is no digest ``sha256:<64 hex>``.
    """
    if not _DIGEST.fullmatch(digest):
        raise Da3Error(
            f"expected a digest 'sha256:<64 hex>', got {digest!r}",
            fix="pass the whole digest as toolchain.core.digest wrote it",
        )
    return digest.removeprefix("sha256:")[:12]
