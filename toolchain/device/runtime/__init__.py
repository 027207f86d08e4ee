"""Run linked models: one backbone, many domains, swapped without a rebuild.

Rules of this room: numpy and Pillow, never torch and never onnx, so that a device runs bundles
without either. ``runner`` is what an application calls, as :class:`toolchain.device.Runner`. Only
``ort`` imports onnxruntime, and it is loaded only when a backbone's folder is opened; ``trt`` runs
TensorRT engines. This room verifies nothing that :mod:`toolchain.bundle` verifies, and links
nothing.
"""
