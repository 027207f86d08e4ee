"""Hold linked models against PyTorch: golden data, parity, the check of a finished bundle.

Rules of this room: the reference is fp32 PyTorch in eager mode, taken once (``reference``, the only
file here that imports torch) and kept as golden data; comparing needs numpy and onnxruntime only,
so that a user's CI repeats it without torch. Nothing here is timed: see ``benchmarks/``.
"""
