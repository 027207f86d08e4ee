"""Run linked models: sessions, gates and slots at run time.

Rules of this room: numpy, Pillow and onnxruntime; never torch and never onnx, so that a device
runs bundles without either. It verifies nothing that :mod:`toolchain.bundle` verifies, and links
nothing.
"""
