"""What a target reads: linked graphs rewritten for the ONNX parser and the precision of a board.

Rules of this room: every pass takes an ``onnx_ir`` model (a linked graph of batch 1, or a segment)
and returns a changed copy. A pass changes form, dialect or precision. It changes the model's
answers by no more than the tolerance that it states. No torch and no TensorRT: the parsers' limits
are tables (:mod:`toolchain.device.boards.parsers`), so the workstation refuses a model and names
the node. What a board does with the result is :mod:`toolchain.device.engine`'s business.
"""
