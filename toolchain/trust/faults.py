"""What python-tuf raises, as the error of the attack that it has stopped.

Rules of this file: one class of ours for each kind of python-tuf's. A message of somebody hostile
is cut. What is raised in a way that python-tuf does not promise (ValueError and the like, for
metadata of odd types) is malformed metadata. An error of ours passes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api import exceptions as tuf_errors
from tuf.api.serialization import DeserializationError

from toolchain.core.errors import (
    Da3Error,
    MalformedError,
    MissingPackageError,
    MixedError,
    RepositoryError,
    RollbackError,
    SlowRepositoryError,
    StorageError,
    TooLargeError,
    TrustError,
    UnsignedError,
)
from toolchain.trust.release import ASK_PUBLISHER

if TYPE_CHECKING:
    from securesystemslib.signer import Key

_SHOWN = 300
_NEWER = "try again later, or from another mirror; this device keeps what it has"


@contextmanager
def told(
    expired: Callable[[Exception], TrustError], keys: Callable[[], list[Key]]
) -> Iterator[None]:
    """Turn what python-tuf raises inside the block into errors of ours.

    ``expired`` makes the error for metadata whose time is over; ``keys`` returns those that
    signatures were checked with.
    """
    try:
        yield
    except (Da3Error, MemoryError):
        raise
    except tuf_errors.ExpiredMetadataError as err:
        raise expired(err) from err
    except tuf_errors.UnsignedMetadataError as err:
        raise _unsigned(err, keys()) from err
    except tuf_errors.DownloadError as err:
        raise _not_fetched(err) from err
    except OSError as err:
        raise no_cache(Path(str(err.filename or "its folder")), err) from err
    except Exception as err:
        raise _untrusted(err) from err


def no_cache(path: Path, err: OSError) -> StorageError:
    """Return the error for a cache that the file system refuses."""
    return StorageError(
        f"cannot keep metadata in {path}: {err.strerror or err}",
        fix="make room, or remove the folder: it is a cache",
    )


def _unsigned(err: Exception, keys: list[Key]) -> Da3Error:
    # Without the package such a signature counts as a wrong one.
    if any(key.scheme != "ed25519" for key in keys) and find_spec("cryptography") is None:
        return MissingPackageError("cryptography", "a repository with keys on tokens", "sign")
    return UnsignedError(
        f"expected enough signatures of trusted keys, got fewer: {_cut(err)}", fix=ASK_PUBLISHER
    )


def _not_fetched(err: tuf_errors.DownloadError) -> Da3Error:
    match err:
        case tuf_errors.DownloadLengthMismatchError():
            return TooLargeError(f"metadata is too large: {_cut(err)}", fix=ASK_PUBLISHER)
        case tuf_errors.SlowRetrievalError():
            return SlowRepositoryError(f"the repository is too slow: {_cut(err)}", fix=_NEWER)
    return RepositoryError(
        f"cannot reach the repository: {_cut(err.__cause__ or err)}",
        fix="check the address and the connection; this device keeps what it has",
    )


def _untrusted(err: Exception) -> TrustError:
    reason = _cut(err)
    match err:
        case tuf_errors.BadVersionNumberError():
            return RollbackError(f"metadata is older than before: {reason}", fix=_NEWER)
        case tuf_errors.LengthOrHashMismatchError():
            return MixedError(
                f"metadata is not what the snapshot says, or was damaged on the way: {reason}",
                fix=_NEWER,
            )
        # The class of this one is python-tuf's most general.
        case tuf_errors.RepositoryError() if "missing info" in reason:
            return RollbackError(f"the repository has lost a role: {reason}", fix=_NEWER)
        case DeserializationError():
            reason = _cut(err.__cause__ or err)
    return MalformedError(f"metadata cannot be read: {reason}", fix=ASK_PUBLISHER)


def _cut(err: BaseException) -> str:
    return f"{err or type(err).__name__}"[:_SHOWN]
