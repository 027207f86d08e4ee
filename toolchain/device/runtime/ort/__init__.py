"""Running linked models with onnxruntime.

Rules of this room: it alone imports onnxruntime on the device side.
"""
