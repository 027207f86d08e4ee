"""An open backbone, and the domains that are loaded on it.

Rules of this file: a runner holds one of these at a time, and exchanges it as a whole. ``table`` is
never changed: whoever publishes puts another one in its place, in one assignment. So a reader sees
the old domains or the new ones, never something between. It loads onnxruntime only where the folder
of a backbone is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from toolchain.bundle import BackboneArtefact
from toolchain.bundle.linkage import Flavour, Form, Linkage
from toolchain.device.engine.cache import open_engine, refuse_kit
from toolchain.device.runtime.loading import LoadedDomain
from toolchain.device.runtime.options import ENGINE, require_engines_own, require_session
from toolchain.device.runtime.trt.engine import OneSession, is_engine, make_session, open_device
from toolchain.device.runtime.trt.plan import TrtDevice

if TYPE_CHECKING:
    from toolchain.device.runtime.ort.sessions import Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What a runner was asked for, as :class:`toolchain.device.runtime.runner.Runner` takes it."""

    threads: int
    provider: str | None
    flavour: Flavour
    form: Form
    sessions: int
    max_batch: int
    contexts: int
    device: TrtDevice | None


@dataclass(slots=True, kw_only=True)
class OpenBackbone:
    """A backbone's folder or engine that was verified and opened.

    ``provider``, ``flavour`` and ``precision`` are what it runs with, whatever was asked. ``left``:
    the runner has another one now, so nothing may be loaded here any more.
    """

    artefact: BackboneArtefact
    sessions: Sessions | OneSession
    provider: str
    flavour: str
    precision: str
    table: Mapping[str, LoadedDomain] = field(default_factory=lambda: MappingProxyType({}))
    left: bool = False

    def publish(self, table: Mapping[str, LoadedDomain]) -> None:
        """Let ``table`` be the loaded domains from now on."""
        self.table = MappingProxyType(table)


def open_backbone(path: Path, options: RunnerOptions) -> OpenBackbone:
    """Open the folder of a backbone or of an engine, with nothing loaded.

    Raises as :class:`toolchain.device.runtime.runner.Runner`.
    """
    if is_engine(path):
        return _open_engine(path, options)
    refuse_kit(path)
    require_session(path, options.provider)
    return _open_sessions(path, options.provider or "cpu", options)


def _open_sessions(path: Path, provider: str, options: RunnerOptions) -> OpenBackbone:
    # Here and nowhere else, so that a TensorRT engine runs where no onnxruntime is installed.
    from toolchain.device.runtime.ort.backbone import open_verified
    from toolchain.device.runtime.ort.session import available
    from toolchain.device.runtime.ort.sessions import Sessions

    available(provider)
    verified = open_verified(path)
    linkage = Linkage(options.flavour, options.form)
    if not linkage.is_shipped:
        # A static domain answers pictures one by one, whatever the form.
        linkage = Linkage(options.flavour, "if")
    opened = OpenBackbone(
        artefact=verified.artefact,
        sessions=Sessions(
            verified,
            graph=linkage.stem,
            threads=options.threads,
            provider=provider,
            limit=options.sessions,
            used=lambda: [loaded.session for loaded in opened.table.values()],
        ),
        provider=provider,
        flavour=str(options.flavour),
        precision="fp32",
    )
    return opened


def _open_engine(path: Path, options: RunnerOptions) -> OpenBackbone:
    require_engines_own(
        options.provider,
        flavour=options.flavour,
        form=options.form,
        sessions=options.sessions,
    )
    engine = open_engine(path)
    built_for = engine.manifest.built_for
    device = options.device or open_device(built_for.module)
    session = make_session(engine, device, contexts=options.contexts)
    return OpenBackbone(
        artefact=BackboneArtefact(path, engine.backbone),
        sessions=OneSession(session, path.name),
        provider=ENGINE,
        flavour=built_for.flavour,
        precision=engine.kit.precision,
    )
