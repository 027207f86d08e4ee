"""onnxruntime sessions as this project uses them.

Rules of this file: one provider, named by the caller and never exchanged for another in silence. A
model comes as bytes, and its large tensors come from one folder. Every fault of onnxruntime becomes
one of our errors, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from toolchain.core.arrays import Array
from toolchain.core.errors import GraphError, ProviderError, UnknownNameError
from toolchain.device.runtime.backend import Shape
from toolchain.device.runtime.limit import TimeLimit

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# onnxruntime's exceptions share no base class of their own; every class of its module is one.
FAULTS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        value
        for value in vars(ort.capi.onnxruntime_pybind11_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
)
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Session:
    """One onnxruntime session over a model given as bytes.

    ``folder`` holds the external tensors (``weights.safetensors``); ``constants`` gives further
    ones in memory by tensor name (a static model's slots). ``exact`` turns every graph optimisation
    off, so that the nodes run as they are written. ``threads``: of one operator. ``provider``: a
    key of ``PROVIDERS``. Raises GraphError for a model that cannot be loaded, UnknownNameError and
    ProviderError for the provider.
    """

    def __init__(
        self,
        model: bytes,
        *,
        folder: Path | None = None,
        constants: Mapping[str, Array] | None = None,
        threads: int = 1,
        exact: bool = False,
        provider: str = "cpu",
        what: str = "model",
    ) -> None:
        full_name = available(provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Operators run one after another: requests are what runs side by side.
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if folder is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
        # onnxruntime keeps pointers into these, not copies.
        self._constants = [ort.OrtValue.ortvalue_from_numpy(a) for a in (constants or {}).values()]
        if constants:
            options.add_external_initializers(list(constants), self._constants)
        self.what = what
        # What a provider has no kernel for runs on the CPU, as onnxruntime always adds it last.
        # Without `enable_fallback` its wrapper would answer a fault with a line on stdout, and try
        # other providers in silence.
        try:
            self._session = ort.InferenceSession(
                model, options, providers=[full_name], enable_fallback=False
            )
            # Names that are no UTF-8 show here.
            inputs = self._session.get_inputs()
            self.inputs: dict[str, Shape] = {i.name: tuple(i.shape) for i in inputs}
            self.dtypes: dict[str, str] = {i.name: i.type for i in inputs}
            self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        except FAULTS as err:
            raise GraphError(
                f"{what}: onnxruntime {ort.__version__} cannot load it: {_first_line(err)}",
                fix="use the onnxruntime of constraints.txt, or export again",
            ) from err
        if full_name not in self._session.get_providers():
            raise ProviderError(
                f"{what}: expected it to run on {full_name}, which did not start; "
                f"onnxruntime took {', '.join(self._session.get_providers())}",
                fix="check the provider's libraries (CUDA, cuDNN, TensorRT), or ask for cpu",
            )

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        limit: TimeLimit | None = None,
    ) -> dict[str, Array]:
        """Run once and return the named ``outputs`` (all, by default) by name.

        Any number of threads may run one session. Raises GraphError for a missing, unknown or
        misshapen input, TimeLimitError when ``limit`` is over, also in the middle of the run.
        """
        names = list(outputs or self.outputs)
        try:
            values = self._session.run(names, dict(feeds), _run_options(limit))
        except FAULTS as err:
            if limit is not None and limit.over:
                raise limit.stopped(self.what) from err
            raise GraphError(
                f"{self.what}: onnxruntime refused to run: {_first_line(err)}",
                fix=f"expected the inputs {_shapes(self.inputs)}",
            ) from err
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def available(provider: str) -> str:
    """Return onnxruntime's name of ``provider``.

    Raises UnknownNameError for a name that is not in ``PROVIDERS``, ProviderError if the installed
    onnxruntime was built without it.
    """
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise UnknownNameError("provider", str(provider), PROVIDERS)
    built = ort.get_available_providers()
    if PROVIDERS[provider] not in built:
        known = [name for name, full in PROVIDERS.items() if full in built]
        raise ProviderError(
            f"expected an onnxruntime with the provider {provider!r} ({PROVIDERS[provider]}), "
            f"got {ort.__version__} with {', '.join(known)}",
            fix="install onnxruntime-gpu in place of onnxruntime, or ask for cpu",
        )
    return PROVIDERS[provider]


def version() -> str:
    """Return the installed onnxruntime's version."""
    return str(ort.__version__)


def _run_options(limit: TimeLimit | None) -> ort.RunOptions | None:
    """Return options whose terminate flag ``limit`` sets; onnxruntime looks at it as it runs."""
    if limit is None:
        return None
    options = ort.RunOptions()
    limit.when_over(partial(setattr, options, "terminate", True))
    return options


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__


def _shapes(inputs: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
