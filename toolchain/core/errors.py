"""Every error that the toolchain raises on purpose.

Rules of this file: it imports nothing of ours; one class per kind of fault that a caller may want
to tell apart; a message says what was expected and what was found, and ends with the fix. The
command line maps ``exit_code`` to the process's exit status and does nothing else with errors.

::

    Da3Error                        1
    ├── UsageError                  2   the request itself cannot be meant
    │   ├── UnknownNameError        2   no such domain, backbone, method; nearest names are listed
    │   └── LoadedError             2   a domain of that name is loaded already
    ├── RecipeError                 1   a recipe's faults, all of them, each with its key path
    ├── DataError                   1   pictures or annotations missing or unreadable
    ├── WeightsError                1   a backbone's weights are missing, damaged or another's
    ├── CheckpointError             1   an adaptor checkpoint does not fit
    ├── AttachError                 1   the module has no blocks that an adaptor can join
    ├── TrainingError               1   training cannot go on (loss not finite, resume mismatch)
    │   ├── MemoryBudgetError       1   the stated memory holds no such training
    │   ├── DivergedError           6   a loss or weights left every bound
    │   └── BelowHeadError          6   a trained domain is worse than its own head alone
    ├── GraphError                  1   the ONNX side
    │   ├── CaptureError            1   PyTorch could not be captured one to one
    │   ├── SplitError              1   the halves are not disjoint and complete
    │   └── LinkError               1   slots and cut points cannot be joined
    ├── RunError                    1   a runner cannot do what was asked
    │   ├── ProviderError           1   the execution provider is not there or did not start
    │   ├── SessionLimitError       1   the domain needs a further session of the backbone
    │   ├── TimeLimitError          1   a request took longer than it may, and was stopped
    │   ├── ClosedError             1   the runner was closed
    │   ├── DeviceError             1   no CUDA device, or it failed under way
    │   └── DeviceMemoryError       1   the device has not enough memory
    ├── EngineError                 1   TensorRT could not make or take an engine
    │   ├── ModelRefusedError       1   a model that TensorRT cannot take, by node
    │   ├── ConditionalError        1   it cannot be shown that gates skip
    │   ├── PrecisionError          1   the target lacks it, or it is too far from fp32
    │   └── BuildError              1   building failed or ran out of memory
    ├── StorageError                1   the file system refused (disk full, permission)
    │   ├── ExistsError             1   the destination exists
    │   └── LockedError             1   another process works there
    ├── StoreError                  1   a device's store cannot do what was asked
    │   ├── FloorError              1   a release below the lowest counter that may come
    │   ├── TrialError              1   a trial is under way, or none is
    │   ├── QuotaError              1   the store would hold more bytes than it may
    │   └── RolledBackError         5   what was tried was not well, and what ran before runs again
    ├── PolicyError                 1   a device's policy breaks its schema
    ├── OutOfMemoryError            1   this machine has not enough memory for what was asked
    ├── MissingPackageError         1   an optional package is needed; the extra is named
    ├── ParityError                 3   a linked model does not answer as PyTorch does
    │   └── SelftestError           3   a domain does not answer here as its golden data say
    ├── SigningError                1   a key or its passphrase is not there, or a counter is used
    ├── RepositoryError             1   a repository of releases cannot be reached
    │   └── SlowRepositoryError     1   it sends too slowly, or stands still
    └── VerificationError           4   bytes are not what their manifest says
        ├── BundleError             4   a bundle is malformed, truncated or altered
        ├── StoreDamagedError       4   a store's state or journal is not as it was written
        ├── EngineMismatchError     4   an engine for another device, TensorRT or kit
        ├── BackboneMismatchError   4   right bundle, other backbone
        └── TrustError              4   what a repository says cannot be trusted
            ├── UnsignedError       4   too few signatures of keys that are trusted for it
            ├── RevokedError        4   no key is trusted for this unit, or no longer
            ├── RollbackError       4   older than what this device has seen
            ├── ExpiredError        4   its time is over: a repository that is held back
            │   └── ClockError      4   or the clock of this device is wrong
            ├── MixedError          4   parts of different states of the repository
            ├── DelegationError     4   a role speaks for what is not its own
            ├── MalformedError      4   metadata that no correct writer writes
            ├── TooLargeError       4   larger than metadata may be
            ├── WrongReleaseError   4   signed, but not the release of this unit
            └── AssignmentError     4   an assignment is old, or for another device
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar


def first_few(items: Sequence[str], limit: int, between: str = ", ") -> str:
    """Return the first ``limit`` of ``items`` joined by ``between``; the rest is counted.

    ``first_few(["a", "b", "c"], 2)`` is ``a, b, and 1 more``.
    """
    more = len(items) - limit
    return between.join([*items[:limit], *([f"and {more} more"] if more > 0 else [])])


def install_command(extra: str = "") -> str:
    """Return how the toolchain is installed with an ``extra``; no index of packages has it yet."""
    what = f"'.[{extra}]'" if extra else "."
    return f"in a checkout of the toolchain: pip install {what}"


class Da3Error(Exception):
    """Root of the tree. ``message`` states the fault, ``fix`` what the reader can do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


class UsageError(Da3Error):
    """The request itself cannot be meant."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in its table; the message carries the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str = "") -> None:
        self.known = tuple(sorted(known))
        # A name from outside may be as long as it likes; comparing it would take as long.
        name = name if len(name) <= 80 else name[:77] + "..."
        near = get_close_matches(name, self.known, n=3, cutoff=0.4)
        listed = f"known: {first_few(self.known, 20)}" if self.known else "none is there"
        hint = f"did you mean {', '.join(near)}?" if near else listed
        super().__init__(f"unknown {kind} {name!r}", fix=f"{hint}; {fix}" if fix else hint)


@dataclass(frozen=True)
class Fault:
    """One fault of a recipe: the key's path (``train.lr``), what is wrong, and the fix."""

    path: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.fix})" if self.fix else "")


class RecipeError(Da3Error):
    """All faults of one recipe at once."""

    def __init__(self, where: str, faults: Sequence[Fault], *, fix: str = "") -> None:
        self.where = where
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        plural = "fault" if len(self.faults) == 1 else "faults"
        super().__init__(f"{where}: {len(self.faults)} {plural}\n{lines}", fix=fix)


class DataError(Da3Error):
    """Pictures or annotations are missing or cannot be read.

    Where one run looks for all faults of a folder, ``faults`` lists them, at most ``LISTED``.
    """

    LISTED: ClassVar[int] = 10_000
    _SHOWN: ClassVar[int] = 20

    def __init__(self, message: str, *, fix: str = "", faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults[: self.LISTED])
        super().__init__(message, fix=fix)

    @classmethod
    def of(cls, where: str, faults: Sequence[Fault], *, fix: str) -> DataError:
        """Return the error that tells all ``faults`` of the folder ``where`` at once."""
        lines = [f"{fault.path}: {fault.message}" for fault in faults]
        plural = "fault" if len(faults) == 1 else "faults"
        listed = first_few(lines, cls._SHOWN, "\n  ")
        return cls(f"{where}: {len(faults)} {plural}\n  {listed}", fix=fix, faults=faults)


class WeightsError(Da3Error):
    """A backbone's weights are missing, damaged, or not the expected ones."""


class CheckpointError(Da3Error):
    """An adaptor checkpoint does not fit the model, or holds unusable values."""


class AttachError(Da3Error):
    """The module has no blocks that an adaptor can join."""


class TrainingError(Da3Error):
    """Training cannot go on.

    ``settings``: other values of the recipe that may help, each as ``key.path=value``.
    """

    settings: tuple[str, ...] = ()


class MemoryBudgetError(TrainingError):
    """The stated memory does not hold the training."""


class DivergedError(TrainingError):
    """A training's loss or weights left every bound."""

    exit_code = 6


class BelowHeadError(TrainingError):
    """A trained domain is worse than the head alone from which it started."""

    exit_code = 6


class GraphError(Da3Error):
    """A fault on the ONNX side."""


class CaptureError(GraphError):
    """PyTorch could not be captured with names and values one to one."""


class SplitError(GraphError):
    """Backbone and domain are not disjoint and complete."""


class LinkError(GraphError):
    """Slots and cut points cannot be joined."""


class LoadedError(UsageError):
    """A domain of that name is loaded already."""


class RunError(Da3Error):
    """A runner cannot do what was asked."""


class ProviderError(RunError):
    """The execution provider is not available, or did not take the model."""


class SessionLimitError(RunError):
    """The domain needs a further session of the backbone, and none is allowed.

    ``needed``: how many sessions would do, which the fix says as ``sessions=N``; 0 where no number
    helps.
    """

    def __init__(self, message: str, *, fix: str, needed: int = 0) -> None:
        self.needed = needed
        super().__init__(message, fix=fix)

    def say(self, needed: int, option: str = "sessions=") -> None:
        """Let the fix say ``needed`` sessions, with ``option`` in front of the number."""
        if self.needed:
            self.fix = self.fix.replace(f"sessions={self.needed}", f"{option}{needed}")
            self.needed = needed


class TimeLimitError(RunError):
    """A request took longer than it may, and was stopped."""


class ClosedError(RunError):
    """The runner was closed."""


class DeviceError(RunError):
    """There is no CUDA device, or it failed while something ran on it."""


class DeviceMemoryError(RunError):
    """The device has not enough memory for what was asked."""


class EngineError(Da3Error):
    """TensorRT could not make an engine, or take one."""


class ModelRefusedError(EngineError):
    """A model that the target or its TensorRT cannot take; the message names the node."""


class ConditionalError(EngineError):
    """It cannot be shown that a closed gate skips its block."""


class PrecisionError(EngineError):
    """The target lacks the precision, or its answers are too far from fp32."""


class BuildError(EngineError):
    """TensorRT could not build the engine, or ran out of memory."""


class StorageError(Da3Error):
    """The file system refused: disk full, permission, a broken device."""


class ExistsError(StorageError):
    """The destination exists, and the caller did not ask to overwrite it."""


class LockedError(StorageError):
    """Another process works where the caller wants to be alone."""


class StoreError(Da3Error):
    """A device's store cannot do what was asked."""


class FloorError(StoreError):
    """A release whose counter is below the floor of its unit: a rollback that nobody released."""


class TrialError(StoreError):
    """A trial is under way where none may be, or none is where one must be."""


class QuotaError(StoreError):
    """The store would hold more bytes than it may; nothing was written."""


class RolledBackError(StoreError):
    """What a device tried was not well, and what ran before runs again."""

    exit_code = 5


class PolicyError(Da3Error):
    """A device's policy breaks its schema."""


class OutOfMemoryError(Da3Error):
    """The machine has not enough memory for what was asked."""


class MissingPackageError(Da3Error):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            fix=install_command(extra),
        )


class ParityError(Da3Error):
    """A linked model does not answer as PyTorch does."""

    exit_code = 3


class SelftestError(ParityError):
    """A domain does not answer as its golden data say, on this device."""


class VerificationError(Da3Error):
    """Bytes are not what their manifest says."""

    exit_code = 4


class BundleError(VerificationError):
    """A bundle is malformed, truncated or altered."""


class StoreDamagedError(VerificationError):
    """A store's state or journal is not as it was written."""


class EngineMismatchError(VerificationError):
    """An engine that was built for another device, TensorRT or kit than the one at hand."""


class BackboneMismatchError(VerificationError):
    """The bundle belongs to another backbone than the one at hand."""


class SigningError(Da3Error):
    """A key or its passphrase is not there, or a release counter is used already."""


class RepositoryError(Da3Error):
    """A repository of releases cannot be reached."""


class SlowRepositoryError(RepositoryError):
    """A repository sends too slowly, or stands still."""


class TrustError(VerificationError):
    """What a repository says cannot be trusted."""


class UnsignedError(TrustError):
    """Metadata has too few signatures of the keys that are trusted for its role."""


class RevokedError(TrustError):
    """No key is trusted for the unit, or no longer."""


class RollbackError(TrustError):
    """Metadata or a release is older than what this device has seen."""


class ExpiredError(TrustError):
    """The time of metadata is over: somebody holds the repository back, or nobody keeps it."""


class ClockError(ExpiredError):
    """The time of everything is over by far: the clock of this device is probably wrong."""


class MixedError(TrustError):
    """Metadata of different states of a repository, side by side."""


class DelegationError(TrustError):
    """A role speaks for what is not its own."""


class MalformedError(TrustError):
    """Metadata that no correct writer writes."""


class TooLargeError(TrustError):
    """Metadata is larger, or lists more, than it may."""


class WrongReleaseError(TrustError):
    """What is signed is not the release of the unit that was asked for."""


class AssignmentError(TrustError):
    """An assignment is older than one that was followed, or it is for another device."""
