"""What a target reads: linked graphs rewritten for the ONNX parser and the precision of a board.

Rules of this room: every pass takes an ``onnx_ir`` model (a linked graph of batch 1, or a segment)
and returns a changed copy; a pass changes form, dialect or precision, never what the model answers
beyond the tolerance that it states. No torch, no TensorRT: the parsers' limits stand here as tables
with their sources, so that a refusal comes on the workstation and names the node. What a board does
with the result is :mod:`toolchain.device.engine`'s business.
"""
