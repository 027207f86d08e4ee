"""Running TensorRT engines.

Rules of this room: TensorRT and the CUDA driver, never onnxruntime.
"""
