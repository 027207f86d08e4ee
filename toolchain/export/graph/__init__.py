"""Graphs: PyTorch to ONNX.

Rules of this room: ``capture`` asks torch's exporter for the whole model, ``split`` cuts it into
the frozen backbone and the domain, ``link`` joins them again with gates as real control flow.
Graphs are onnx-ir models; only ``capture`` and ``halves`` see torch.
"""
