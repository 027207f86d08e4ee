"""The model repository: one folder of bundles, loaded and unloaded over the network.

Rules of this file: a name from outside is looked up among the names in the folder and never joined
to a path; only ``<name>.da3b`` right in the folder counts. The runner knows what is loaded.
The caller lets one change happen at a time.

Source: Triton, "Model Repository Extension".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from toolchain.core.errors import DataError, LoadedError, UnknownNameError, UsageError
from toolchain.core.files import is_folder
from toolchain.core.words import LOADED
from toolchain.device.serve.domains import version
from toolchain.device.serve.faults import refusal
from toolchain.device.store.dist import listed

if TYPE_CHECKING:
    from toolchain.device.runtime.answers import Domain
    from toolchain.device.runtime.runner import Runner


NONE: Mapping[str, str] = MappingProxyType({})


class Repository:
    """The bundles in ``folder``; None: nothing can be loaded, only unloaded.

    ``refused``: what was not loaded before, by name, and why, as clients may read it. Raises
    UsageError for a folder that is none.
    """

    def __init__(
        self, runner: Runner, folder: Path | None, refused: Mapping[str, str] = NONE
    ) -> None:
        if folder is not None and not is_folder(folder):
            raise UsageError(f"expected a folder of bundles, got {folder}", fix="make it first")
        self._runner = runner
        self._folder = folder
        # Why the last load of a name failed, in words: an error would keep alive what it saw.
        self._faults = dict(refused)

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Return loaded domains and bundles at hand, by name, as the extension lists them."""
        loaded, failed = self._runner.domains, self.failed()
        waiting = [] if ready_only else sorted({*self._bundles(), *failed} - loaded.keys())
        entries = [
            {"name": name, "version": version(domain), "state": "READY", "reason": ""}
            for name, domain in loaded.items()
        ]
        entries += [
            {
                "name": name,
                "version": "",
                "state": "UNAVAILABLE",
                "reason": failed.get(name, "not loaded"),
            }
            for name in waiting
        ]
        return sorted(entries, key=lambda entry: entry["name"])

    def failed(self) -> dict[str, str]:
        """Return what could not be loaded and is not loaded now, by name, and why."""
        loaded = self._runner.domains
        # Copied at once, as a load may change it meanwhile.
        faults = sorted(self._faults.copy().items())
        return {name: why for name, why in faults if name not in loaded}

    def load(self, name: str, parameters: Mapping[str, Any]) -> Domain:
        """Load ``<folder>/<name>.da3b``, or replace the domain of that name by it.

        Raises DataError for parameters (they would override what was verified), UsageError for a
        name that no domain may have and without a folder, UnknownNameError if there is no such
        bundle, LoadedError if somebody else loads or unloads it meanwhile; what the runner raises.
        """
        if parameters:
            raise DataError(f"expected no parameters of load, got {', '.join(parameters)[:200]}")
        if not LOADED.accepts(name):
            raise UsageError(f"expected a model's name ({LOADED.expected}), got {name!r:.80}")
        if self._folder is None:
            raise UsageError("expected a server with a repository, got one without")
        bundles = self._bundles()
        if name not in bundles:
            raise UnknownNameError("model", name, bundles)
        try:
            return self._loaded(name, bundles[name])
        except Exception as err:
            self._faults[name] = refusal(err).message
            raise

    def _loaded(self, name: str, path: Path) -> Domain:
        try:
            if name in self._runner.domains:
                return self._runner.replace(path, name=name)
            return self._runner.load(path, name=name)
        except (LoadedError, UnknownNameError) as err:
            # Somebody else than this server changed the runner between the question and the act.
            raise LoadedError(f"{name!r} was loaded or unloaded meanwhile") from err

    def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Unload the domain. ``unload_dependents`` changes nothing: no model depends on another.

        Raises UnknownNameError, and DataError for other parameters.
        """
        stray = [key for key in parameters if key != "unload_dependents"]
        if stray:
            raise DataError(f"expected no such parameters of unload, got {', '.join(stray)[:200]}")
        if name not in self._runner.domains:
            raise UnknownNameError("model", name, self._runner.domains)
        self._runner.unload(name)
        # A replacement that failed before says nothing of a model that was unloaded on purpose.
        self._faults.pop(name, None)

    def _bundles(self) -> dict[str, Path]:
        """Return the bundles in the folder by name."""
        return {} if self._folder is None else listed(self._folder)
