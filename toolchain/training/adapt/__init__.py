"""Adapt: what joins a frozen backbone to make it a domain's model.

Rules of this room: only a domain's own tensors ever change. ``blocks`` finds the places,
``adaptors`` is what joins there, ``overrides`` is what stands in place of backbone tensors,
``methods`` lists what can be learned, ``attached`` joins it all. ``checkpoint`` writes and reads a
domain, ``restore`` makes a model of it again. Nothing here trains; ``loop`` does.
"""
