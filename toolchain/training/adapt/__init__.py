"""Adapt: what joins a frozen backbone to make it a domain's model.

Rules of this room: only a domain's own tensors ever change. ``blocks`` finds the places,
``adaptors`` is what joins there, ``attached`` joins it, ``methods`` lists what can be learnt,
``checkpoint`` keeps it. Nothing here trains; ``loop`` does.
"""
