"""Boards: what a board is and can do.

Rules of this room: facts with their sources, read from tables or from the machine; the CUDA driver
is opened only when a function asks for it. Nothing is built here.
"""
