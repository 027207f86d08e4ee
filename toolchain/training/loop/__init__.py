"""The loop: train an attached model, watch it, keep its state, and restore it.

Rules of this room: it drives what ``adapt`` attached and what ``data`` loads; the library reports
progress by calling back and prints nothing.
"""
