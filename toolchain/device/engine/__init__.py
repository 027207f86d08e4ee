"""TensorRT engines: kits, building, conditionals that skip, the cache.

Rules of this room: no torch and no onnx, so that a board builds with what its JetPack carries.
``tensorrt`` or ``tensorrt_rtx`` is imported where a network is made, never when a file of this room
is imported. The room takes kits, which :mod:`toolchain.export.emit` writes on a workstation, and
makes engines, which :mod:`toolchain.device.runtime` runs. It changes no graph.
"""
