"""The ways to have several domains in one process, behind one call.

Rules of this file: a way puts a domain in place and hands out what answers a picture. It neither
times nor chooses. ``bundle`` and ``installed`` are this library's runner, from a bundle or from an
installed folder. ``whole`` makes a session of a model that holds everything. ``shared`` gives each
session the backbone's tensors from one copy (onnxruntime's ``SessionOptions.add_initializer``). At
full optimisation onnxruntime lays weights out anew in every session; at ``extended`` it leaves them
where they are and is slower for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from toolchain.bench.materials import Materials
from toolchain.bundle.slots import slot_arrays
from toolchain.core.arrays import Floats
from toolchain.device import Runner
from toolchain.device.runtime.ort.session import WEIGHTS_FOLDER

Kind = Literal["bundle", "installed", "whole", "shared", "shared, extended"]
OURS: tuple[Kind, ...] = ("bundle", "installed")
OTHERS: tuple[Kind, ...] = ("whole", "shared", "shared, extended")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A domain in place: ``ask`` answers float32 ``[1, 3, S, S]``, ``drop`` lets it go."""

    ask: Callable[[Floats], object]
    drop: Callable[[], None]


class Ways(AbstractContextManager["Ways"]):
    """Every way that the materials allow, over one runner and one copy of shared tensors.

    After :meth:`prepare` the runner holds its session, as that of a device which swaps does, and
    the tensors to share are in memory.
    """

    def __init__(self, materials: Materials, *, threads: int) -> None:
        self.materials = materials
        self.threads = threads
        self._stack = ExitStack()
        self.runner = self._stack.enter_context(Runner(materials.backbone, threads=threads))
        self._installed: list[Path] = []
        self._shared: Mapping[str, Any] = {}
        self._loads = 0

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The ways that there are materials for."""
        others = {"whole": self.materials.wholes, "shared": self.materials.shared}
        return (*OURS, *(kind for kind in OTHERS if others[kind.partition(",")[0]]))

    def image(self) -> Floats:
        """Return one picture of normal noise for the first domain, float32 ``[1, 3, S, S]``."""
        side = self.materials.open().manifest.preprocess.size
        return np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)

    def prepare(self, kind: Kind, domains: int) -> None:
        """Do what comes before the first of ``domains``: a session, installing, reading weights."""
        if kind.startswith("shared") and not self._shared:
            # onnxruntime does not copy these: they must live as long as every session that uses
            # them.
            self._shared = _values(self.materials.backbone / "weights.safetensors")
        if kind in OURS and not self.runner.facts.sessions:
            self.runner.load(self.materials.bundles[0], name="first", selftest=False)
        if kind == "installed" and not self._installed:
            folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="da3-bench-")))
            for index, path in enumerate(self.materials.bundles[:domains]):
                self._installed.append(folder / str(index))
                self.runner.install(path, self._installed[-1])

    def source(self, kind: Kind, index: int) -> Path:
        """Return the file or folder of a domain, in turn where there are fewer."""
        sources = {
            "bundle": self.materials.bundles,
            "installed": self._installed,
            "whole": self.materials.wholes,
        }.get(kind, self.materials.shared)
        return sources[index % len(sources)]

    def load(self, kind: Kind, index: int) -> Loaded:
        """Put a domain in place, ready to be asked; self-tests are left out."""
        source = self.source(kind, index)
        if kind in OURS:
            self._loads += 1
            name = f"bench{self._loads}"
            self.runner.load(source, name=name, selftest=False)
            return Loaded(
                lambda image: self.runner.infer(image, name), lambda: self.runner.unload(name)
            )
        session = self._session(kind, source)
        return Loaded(lambda image: session.run(None, {"image": image}), lambda: None)

    def _session(self, kind: Kind, path: Path) -> ort.InferenceSession:
        options = options_of(self.threads)
        if kind == "whole":
            return bare(path, options)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(self.materials.backbone))
        for name, value in self._shared.items():
            options.add_initializer(name, value)
        if kind == "shared, extended":
            # The level above brings weights into a blocked layout: each session then has a copy of
            # its own.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        return bare(path.read_bytes(), options)


def options_of(threads: int) -> ort.SessionOptions:
    """Return session options as :class:`toolchain.device.runtime.ort.session.Session` sets them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def bare(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """Return onnxruntime's own session on the CPU, nothing of ours around it."""
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], enable_fallback=False
    )


def _values(path: Path) -> Mapping[str, Any]:
    arrays = slot_arrays(path.read_bytes())
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
